"""One rule for text that UTF-8 cannot hold: it is refused, wherever it comes in.

JSON can escape half of a surrogate pair ("\\ud83d"), and arguments of programs that are no UTF-8
hold such halves. No tokenizer has bytes for them, and no answer could carry them.
"""

import json
import re
from typing import Any, TypeAlias

from nemo_trt.errors import RequestError

_HALF = re.compile("[\ud800-\udfff]")
WORDS = "must be text that UTF-8 can hold, got half a surrogate pair in it."

_Place: TypeAlias = "tuple[_Place, Any] | None"
"""Where a value stands: its parent's place, and its key or position there."""
_NO_TEXT = frozenset({int, float, bool, type(None)})


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
    """The path of the first text that UTF-8 cannot hold; None where there is none.

    Numbers cost next to nothing; the path is spelled out when it is needed.
    """
    waiting: list[tuple[_Place, Any]] = [(None, value)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, str):
            if not _encodes(one):
                return _path(place, name)
        elif isinstance(one, dict):
            if not all(_encodes(key) for key in one if isinstance(key, str)):
                return _path(place, name)
            members = one.items()
            waiting += reversed([((place, k), v) for k, v in members if type(v) not in _NO_TEXT])
        elif isinstance(one, list | tuple):
            entries = enumerate(one)
            waiting += reversed([((place, k), v) for k, v in entries if type(v) not in _NO_TEXT])
    return None


def json_text(data: object, *, allow_nan: bool = True) -> str:
    """An indented JSON document that UTF-8 can hold.

    A path of Linux may be no UTF-8: Python puts half a surrogate pair for each such byte, which is
    escaped here. Read again, it is the same path.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=allow_nan)
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text) + "\n"


def _path(place: "_Place", name: str) -> str:
    steps = []
    while place is not None:
        place, step = place
        steps.append(step)
    for step in reversed(steps):
        if isinstance(step, int):
            name += f"[{step}]"
        else:
            name = f"{name}.{step}" if name else str(step)
    return name


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
