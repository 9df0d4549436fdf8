"""The meaning of one streamed chunk, of chat or of plain completions."""

import json
from dataclasses import dataclass
from typing import Any

_CONTENT = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one event said.

    Attributes:
        bears: whether it holds something of the answer.
        usage: the server's count of tokens.
        error: the server's words, when the answer broke off.
        done: the stream is complete.
    """

    bears: bool = False
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None
    done: bool = False


def read_piece(data: bytes) -> Piece:
    """Read an event's data. What is no JSON object of OpenAI's is an error of the server's."""
    if data == b"[DONE]":
        return Piece(done=True)
    try:
        chunk = json.loads(data)
    except ValueError:
        return Piece(error=f"an event that is no JSON: {data[:80]!r}")
    if not isinstance(chunk, dict):
        return Piece(error=f"an event that is no object: {data[:80]!r}")
    if chunk.get("error"):
        return Piece(error=error_words(chunk))
    usage = chunk.get("usage")
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(first, dict):
        return Piece(error=f"an event with a choice that is no object: {data[:80]!r}")
    delta = first.get("delta")
    bears = bool(first.get("text"))
    if isinstance(delta, dict):
        bears = any(delta.get(name) for name in _CONTENT)
    return Piece(
        bears=bears,
        finish_reason=first.get("finish_reason"),
        usage=usage if isinstance(usage, dict) else None,
    )


def error_words(body: Any) -> str:
    """What an error's body says, cut short."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    text = " ".join((error if isinstance(error, str) else json.dumps(error)).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
