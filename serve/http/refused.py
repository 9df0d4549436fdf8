"""Fields of OpenAI's requests that this server does not honour, and why: each is a 400."""

REFUSED = {
    "audio": "is not supported: the model reads and writes text.",
    "background": "must be false or absent: answers are given while the client waits.",
    "best_of": "must be absent or equal to n: answers are not ranked.",
    "conversation": "is not supported: nothing is stored. Send the whole conversation as input.",
    "function_call": "is not supported: it is the old form of tool_choice.",
    "functions": "is not supported: it is the old form of tools.",
    "modalities": 'must be ["text"] or absent: the model reads and writes text.',
    "moderation": "is not supported: this server moderates nothing.",
    "previous_response_id": (
        "is not supported: nothing is stored. Send the whole conversation as input."
    ),
    "reasoning": "must ask for no effort: the model does not reason apart from its answer.",
    "reasoning_effort": "is not supported: the model does not reason apart from its answer.",
    "skip_special_tokens": "must be true or absent: special tokens have no text.",
    "service_tier": 'must be "auto", "default" or absent: all requests are alike.',
    "store": "must be false or absent: nothing is stored.",
    "suffix": "is not supported: the model does not fill gaps.",
    "thinking": "must be disabled or absent: the model does not reason apart from its answer.",
    "truncation": 'must be "disabled" or absent: nothing is left out of a conversation.',
    "verbosity": "is not supported: ask for it in the prompt, or set max_completion_tokens.",
    "web_search_options": "is not supported: this server has no web.",
}
