"""Fields of OpenAI's requests that this server does not honour, and why: each is a 400."""

REFUSED = {
    "audio": "is not supported: the model reads and writes text.",
    "best_of": "must be absent or equal to n: answers are not ranked.",
    "function_call": "is not supported: it is the old form of tool_choice.",
    "functions": "is not supported: it is the old form of tools.",
    "metadata": "must be empty or absent: nothing is stored.",
    "modalities": 'must be ["text"] or absent: the model reads and writes text.',
    "moderation": "is not supported: this server moderates nothing.",
    "reasoning_effort": "is not supported: the model does not reason apart from its answer.",
    "skip_special_tokens": "must be true or absent: special tokens have no text.",
    "service_tier": 'must be "auto", "default" or absent: all requests are alike.',
    "store": "must be false or absent: nothing is stored.",
    "suffix": "is not supported: the model does not fill gaps.",
    "verbosity": "is not supported: ask for it in the prompt, or set max_completion_tokens.",
    "web_search_options": "is not supported: this server has no web.",
}
