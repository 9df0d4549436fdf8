"""One rule for text that UTF-8 cannot hold: it is refused, wherever it comes in.

JSON can escape half of a surrogate pair ("\\ud83d"), and arguments of programs that are no UTF-8
hold such halves. No tokenizer has bytes for them, and no answer could carry them.
"""

from collections.abc import Iterator
from typing import Any

from nemo_trt.errors import RequestError

WORDS = "must be text that UTF-8 can hold, got half a surrogate pair in it."


def require_utf8(value: object, name: str) -> None:
    """Refuse text with half a surrogate pair, also within lists and dicts.

    Raises:
        RequestError: there is one; the message begins with the path to it, such as
            `messages[0].content` for the name `messages`.
    """
    path = undecodable(value, name)
    if path is not None:
        raise RequestError(f"{path} {WORDS}")


def undecodable(value: object, name: str = "") -> str | None:
    """The path of the first text that UTF-8 cannot hold; None where there is none."""
    waiting: list[tuple[str, Any]] = [(name, value)]
    while waiting:
        path, one = waiting.pop()
        if isinstance(one, str):
            if not _encodes(one):
                return path
        elif isinstance(one, dict):
            if not all(_encodes(key) for key in one if isinstance(key, str)):
                return path
            waiting += reversed(list(_members(path, one)))
        elif isinstance(one, list | tuple):
            waiting += reversed([(f"{path}[{at}]", entry) for at, entry in enumerate(one)])
    return None


def _members(path: str, found: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, entry in found.items():
        yield f"{path}.{key}" if path else str(key), entry


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
