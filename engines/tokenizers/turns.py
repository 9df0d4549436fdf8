"""Conversations as strict chat formats want them: system first, no role twice in a row."""

from collections.abc import Sequence
from typing import Any

from .tokenizer import Message

BETWEEN = "\n\n"
"""Between the texts of turns that become one, as Mistral's own format has it."""


def merge_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """System messages moved to the front, neighbouring turns of one role joined.

    Results of tools stay one turn each.
    """
    system = [message for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    merged: list[dict[str, Any]] = []
    for message in (*system, *others):
        if merged and message["role"] == merged[-1]["role"] != "tool":
            merged[-1] = _joined(merged[-1], message)
        else:
            merged.append(dict(message))
    return merged


def _joined(first: Message, second: Message) -> dict[str, Any]:
    texts = [str(turn.get("content") or "") for turn in (first, second)]
    calls = [*_calls(first), *_calls(second)]
    joined = {**first, **second, "content": BETWEEN.join(text for text in texts if text)}
    return joined | ({"tool_calls": calls} if calls else {})


def _calls(message: Message) -> list[Any]:
    calls: Any = message.get("tool_calls")
    return list(calls or ())
