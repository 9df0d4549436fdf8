"""Log-probabilities in the two forms that OpenAI's API has."""

from typing import Any

from nemo_trt.engines.generation import TokenEvent
from nemo_trt.engines.tokenizers import Tokenizer


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
        text = _text(self._tokenizer, event.token_id)
        offset, self._offset = self._offset, self._offset + len(text)
        top = {_text(self._tokenizer, token): value for token, value in event.top_logprobs}
        return {
            "tokens": [text],
            "token_logprobs": [event.logprob],
            "top_logprobs": [top],
            "text_offset": [offset],
        }


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _text(tokenizer, token),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token)),
    }


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token alone; half a character shows as U+FFFD."""
    return tokenizer.token_bytes(token).decode("utf-8", errors="replace")
