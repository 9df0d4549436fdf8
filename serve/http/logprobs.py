"""Log-probabilities in the two forms that OpenAI's API has."""

from collections.abc import Sequence
from typing import Any

from nemo_trt.engines.generation import TokenEvent
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.scoring import TokenScore

from .errors import ApiError

_MOST_ENTRIES = 2**17
"""Log-probabilities of prompts that one answer tells: each costs a hundred bytes and more."""


def chat_logprob(event: TokenEvent, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The entry of one token; none where none was asked for, or for a token without text."""
    if event.logprob is None or not tokenizer.token_bytes(event.token_id):
        return []
    entry = _entry(tokenizer, event.token_id, event.logprob)
    entry["top_logprobs"] = [_entry(tokenizer, token, value) for token, value in event.top_logprobs]
    return [entry]


class TextLogprobs:
    """The lists of a plain completion: tokens, their log-probabilities, alternatives, offsets.

    Args:
        offset: of the first token, behind what was echoed.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._offset = offset

    def push(self, event: TokenEvent) -> dict[str, Any] | None:
        """The lists with one token's values; None where none were asked for."""
        if event.logprob is None:
            return None
        return self._lists(event.token_id, event.logprob, event.top_logprobs)

    def prompt(
        self, tokens: Sequence[int], scores: Sequence[TokenScore], top: int
    ) -> dict[str, Any]:
        """The lists of an echoed prompt; its first token has no log-probability.

        Args:
            top: alternatives to tell of each token; others may have been asked for.
        """
        lists = self._lists(tokens[0], None, None)
        for score in scores:
            found = self._lists(score.token_id, score.logprob, score.top[:top])
            for name, values in found.items():
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


def text_length(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    """Characters of tokens, each alone, as offsets count them."""
    return sum(len(_text(tokenizer, token)) for token in tokens)


def require_few(tokens: int, top: int, param: str) -> None:
    """Refuse more log-probabilities of a prompt than an answer may tell.

    Raises:
        ApiError: there are too many.
    """
    if tokens * (top + 1) > _MOST_ENTRIES:
        raise ApiError(
            400,
            f"{param} must be below {max(_MOST_ENTRIES // tokens, 1)} for a prompt of {tokens} "
            f"tokens, got {top}: an answer tells {_MOST_ENTRIES} log-probabilities of prompts at "
            "most.",
            param=param,
        )


def prompt_entries(
    tokenizer: Tokenizer, scores: Sequence[TokenScore], top: int
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token its own entry and the likeliest, by token id."""
    entries: list[dict[str, Any] | None] = [None]
    for score in scores:
        found = {
            str(token): {"logprob": value, "rank": rank, "decoded_token": _text(tokenizer, token)}
            for rank, (token, value) in enumerate(score.top[:top], 1)
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
