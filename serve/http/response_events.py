"""An answer as the Responses API tells it: items of output, and events that build them."""

import secrets
from collections.abc import Iterator
from typing import Any

from .chat_run import CallPiece, Delta
from .errors import ApiError

Event = dict[str, Any]
_FAILURES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
"""Status -> code of a response's error; every other status is "server_error"."""


class ResponseWriter:
    """Turns the news of one answer into events; what they built is `result`.

    Args:
        response: the object with all that the answer does not change.
    """

    def __init__(self, response: dict[str, Any]) -> None:
        self.result = response
        self._sequence = 0
        self._open: dict[str, Any] | None = None

    def begin(self, prompt_tokens: int) -> Iterator[Event]:
        """Events before the first token."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=dict(self.result, output=[]))

    def push(self, delta: Delta) -> Iterator[Event]:
        """Events of one piece of news."""
        if delta.text or delta.logprobs:
            yield from self._text(delta)
        for piece in delta.calls:
            yield from self._call(piece)
        if delta.reason:
            yield from self._close("incomplete" if delta.reason == "length" else "completed")
            cut = delta.reason == "length"
            self.result["status"] = "incomplete" if cut else "completed"
            if cut:
                self.result["incomplete_details"] = {"reason": "max_output_tokens"}

    def end(self, usage: dict[str, Any]) -> Iterator[Event]:
        """The last event, with the whole response; `usage` is OpenAI's for the chat API."""
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.result["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        yield self._event(f"response.{self.result['status']}", response=self.result)

    def fail(self, error: ApiError) -> Iterator[Event]:
        """The last events, where the answer breaks off: `error`, then `response.failed`."""
        found = error.body["error"]
        yield self._event("error", **{name: found[name] for name in ("code", "message", "param")})
        if self._open is not None:
            self._open["status"] = "incomplete"
        code = _FAILURES.get(error.status, "server_error")
        self.result["status"] = "failed"
        self.result["error"] = {"code": code, "message": found["message"]}
        yield self._event("response.failed", response=self.result)

    def _text(self, delta: Delta) -> Iterator[Event]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close("completed")
            item: dict[str, Any] = {"type": "message", "role": "assistant", "content": []}
            yield from self._add("msg", item)
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
            part["logprobs"] = []
            item["content"] = [part]
            yield self._of_item("response.content_part.added", content_index=0, part=dict(part))
        part = self._item["content"][0]
        part["text"] += delta.text
        part["logprobs"] += delta.logprobs
        yield self._of_item(
            "response.output_text.delta",
            content_index=0,
            delta=delta.text,
            logprobs=delta.logprobs,
        )

    def _call(self, piece: CallPiece) -> Iterator[Event]:
        if piece.name is not None:
            yield from self._close("completed")
            item = {"type": "function_call", "call_id": piece.id, "name": piece.name}
            yield from self._add("fc", item | {"arguments": ""})
        if piece.arguments:
            self._item["arguments"] += piece.arguments
            name = "response.function_call_arguments.delta"
            yield self._of_item(name, delta=piece.arguments)

    def _add(self, prefix: str, item: dict[str, Any]) -> Iterator[Event]:
        item |= {"id": f"{prefix}_{secrets.token_hex(12)}", "status": "in_progress"}
        self._open = item
        self.result["output"].append(item)
        yield self._event("response.output_item.added", output_index=self._index, item=_copy(item))

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        item = self._open
        if item["type"] == "message":
            part = item["content"][0]
            yield self._of_item(
                "response.output_text.done",
                content_index=0,
                text=part["text"],
                logprobs=part["logprobs"],
            )
            yield self._of_item("response.content_part.done", content_index=0, part=dict(part))
        else:
            yield self._of_item(
                "response.function_call_arguments.done",
                name=item["name"],
                arguments=item["arguments"],
            )
        item["status"] = status
        yield self._event("response.output_item.done", output_index=self._index, item=_copy(item))
        self._open = None

    @property
    def _item(self) -> dict[str, Any]:
        return self.result["output"][-1]  # type: ignore[no-any-return]

    @property
    def _index(self) -> int:
        return len(self.result["output"]) - 1

    def _of_item(self, kind: str, /, **fields: Any) -> Event:
        return self._event(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _event(self, kind: str, /, **fields: Any) -> Event:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """An item as it is now: its lists grow on."""
    if "content" in item:
        return {**item, "content": [dict(part) for part in item["content"]]}
    return dict(item)
