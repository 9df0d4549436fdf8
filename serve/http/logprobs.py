"""Log-probabilities in the two forms that OpenAI's API has."""

from collections.abc import Sequence
from typing import Any

from nemo_trt.engines.generation import TokenEvent
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.scoring import TokenScore


def chat_logprob(event: TokenEvent, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The entry of one token; none where none was asked for, or for a token without text."""
    if event.logprob is None or not tokenizer.token_bytes(event.token_id):
        return []
    entry = _entry(tokenizer, event.token_id, event.logprob)
    entry["top_logprobs"] = [_entry(tokenizer, token, value) for token, value in event.top_logprobs]
    return [entry]


class TextLogprobs:
    """The lists of a plain completion: tokens, their log-probabilities, alternatives, offsets."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def push(self, event: TokenEvent) -> dict[str, Any] | None:
        """The lists with one token's values; None where none were asked for."""
        if event.logprob is None:
            return None
        return self._lists(event.token_id, event.logprob, event.top_logprobs)

    def prompt(self, tokens: Sequence[int], scores: Sequence[TokenScore]) -> dict[str, Any]:
        """The lists of an echoed prompt; its first token has no log-probability."""
        lists = self._lists(tokens[0], None, None)
        for score in scores:
            for name, values in self._lists(score.token_id, score.logprob, score.top).items():
                lists[name] += values
        return lists

    def _lists(
        self,
        token: int,
        logprob: float | None,
        top: Sequence[tuple[int, float]] | None,
    ) -> dict[str, Any]:
        text = _text(self._tokenizer, token)
        offset, self._offset = self._offset, self._offset + len(text)
        shown = None
        if top is not None:
            shown = {_text(self._tokenizer, other): value for other, value in reversed(top)}
        return {
            "tokens": [text],
            "token_logprobs": [logprob],
            "top_logprobs": [shown],
            "text_offset": [offset],
        }


def prompt_entries(
    tokenizer: Tokenizer, scores: Sequence[TokenScore]
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token its own entry and the likeliest, by token id."""
    entries: list[dict[str, Any] | None] = [None]
    for score in scores:
        found = {
            str(token): {"logprob": value, "rank": rank, "decoded_token": _text(tokenizer, token)}
            for rank, (token, value) in enumerate(score.top, 1)
        }
        found[str(score.token_id)] = {
            "logprob": score.logprob,
            "rank": score.rank,
            "decoded_token": _text(tokenizer, score.token_id),
        }
        entries.append(found)
    return entries


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _text(tokenizer, token),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token)),
    }


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token alone; half a character shows as U+FFFD."""
    return tokenizer.token_bytes(token).decode("utf-8", errors="replace")
