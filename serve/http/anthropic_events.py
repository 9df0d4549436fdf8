"""An answer as Anthropic's Messages API tells it: blocks of content, and events that build them."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from .anthropic_errors import anthropic_body
from .chat_run import CallPiece, Delta
from .errors import ApiError

Event = dict[str, Any]
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageWriter:
    """Turns the news of one answer into events, and into a message."""

    def __init__(self, model: str) -> None:
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._open = False
        self._arguments: dict[int, str] = {}  # of the block at an index

    @property
    def result(self) -> dict[str, Any]:
        """The message so far. A call that was cut off has the input that is complete.

        Raises:
            ApiError: the model wrote arguments that JSON cannot carry (a number beyond all bounds).
        """
        for at, text in self._arguments.items():
            block = self._message["content"][at]
            block["input"] = _input(block["name"], text)
        return self._message

    def begin(self, prompt_tokens: int) -> Iterator[Event]:
        """The event before the first token, when it is open how much of the prompt is cached."""
        self._message["usage"] = _usage(prompt_tokens, 0, 0)
        yield {"type": "message_start", "message": {**self._message, "content": []}}

    def push(self, delta: Delta) -> Iterator[Event]:
        """Events of one piece of news."""
        if delta.text:
            if not self._open or self._block["type"] != "text":
                yield from self._start({"type": "text", "text": ""})
            self._block["text"] += delta.text
            yield self._delta({"type": "text_delta", "text": delta.text})
        for piece in delta.calls:
            yield from self._call(piece)
        if delta.reason:
            yield from self._stop()
            by_text = delta.stop_text is not None and delta.reason == "stop"
            self._message["stop_reason"] = "stop_sequence" if by_text else _REASONS[delta.reason]
            self._message["stop_sequence"] = delta.stop_text if by_text else None

    def end(self, usage: dict[str, Any]) -> Iterator[Event]:
        """The last events; `usage` is OpenAI's."""
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        counted = _usage(usage["prompt_tokens"], cached, usage["completion_tokens"])
        self._message["usage"] = counted
        ended = {name: self._message[name] for name in ("stop_reason", "stop_sequence")}
        yield {"type": "message_delta", "delta": ended, "usage": counted}
        yield {"type": "message_stop"}

    def fail(self, error: ApiError) -> Iterator[Event]:
        """The last event, where the answer breaks off."""
        yield anthropic_body(error.body, error.status)

    def _call(self, piece: CallPiece) -> Iterator[Event]:
        if piece.name is not None:
            block: dict[str, Any] = {
                "type": "tool_use",
                "id": piece.id,
                "name": piece.name,
                "input": {},
            }
            yield from self._start(block)
        if piece.arguments:
            self._arguments[self._index] = self._arguments.get(self._index, "") + piece.arguments
            yield self._delta({"type": "input_json_delta", "partial_json": piece.arguments})

    def _start(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._stop()
        self._open = True
        self._message["content"].append(block)
        yield {"type": "content_block_start", "index": self._index, "content_block": dict(block)}

    def _stop(self) -> Iterator[Event]:
        if not self._open:
            return
        self._open = False
        yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: dict[str, str]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    @property
    def _block(self) -> dict[str, Any]:
        return self._message["content"][-1]  # type: ignore[no-any-return]

    @property
    def _index(self) -> int:
        return len(self._message["content"]) - 1


def _input(name: str, arguments: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = from_json(arguments, allow_partial=True)
        json.dumps(found, allow_nan=False)
    except ValueError as error:
        message = f"The model called {name} with arguments that are no plain JSON: {error}."
        raise ApiError(500, f"{message} Ask again, or stream the answer.") from error
    return found


def _usage(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Anthropic's usage, in which `input_tokens` are those that were not cached."""
    return {
        "input_tokens": prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": completion_tokens,
    }
