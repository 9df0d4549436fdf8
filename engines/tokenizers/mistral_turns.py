"""Assistant turns that mistral-common refuses for NeMo's format: empty ones, text beside calls.

Models write both, so both come back. mistral-common encodes a simpler turn instead, and the tokens
are put right afterwards: every assistant turn ends with the end token, which no text can hold.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

_PLACEHOLDER = "0"


class Restore(Protocol):
    """Puts the tokens right."""

    def __call__(
        self,
        tokens: list[int],
        end: int,
        tool_calls: int | None,
        encode: Callable[[str], list[int]],
    ) -> list[int]:
        """Tokens of the turns as they were given."""


def simplify(turns: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Restore]:
    """Turns that mistral-common encodes, and what makes their tokens those of the given ones.

    Args:
        turns: no role but "tool" stands twice in a row. An assistant's at the end is continued.
    """
    plain = [dict(turn) for turn in turns]
    changes: dict[int, str] = {}  # number of the assistant's turn -> its text, before its calls
    last = plain[-1] if plain else {}
    if last.get("role") == "assistant" and not (last.get("content") or last.get("tool_calls")):
        plain.pop()  # nothing to continue
    assistants = [turn for turn in plain if turn["role"] == "assistant"]
    for number, turn in enumerate(assistants):
        text = turn.get("content") or ""
        if turn.get("tool_calls"):
            if text:
                changes[number] = text
            turn["content"] = None
        elif not text:
            changes[number] = ""
            turn["content"] = _PLACEHOLDER

    def restore(
        tokens: list[int],
        end: int,
        tool_calls: int | None,
        encode: Callable[[str], list[int]],
    ) -> list[int]:
        if not changes:
            return tokens
        restored: list[int] = []
        start = 0
        ends = [at for at, token in enumerate(tokens) if token == end]
        for number, at in enumerate(ends):
            turn = tokens[start:at]
            if changes.get(number) == "":
                turn = turn[: -len(encode(_PLACEHOLDER))]
            elif number in changes and tool_calls is not None:
                called = turn.index(tool_calls)
                turn[called:called] = encode(changes[number].rstrip(" "))
            restored += [*turn, end]
            start = at + 1
        return restored + tokens[start:]

    return plain, restore
