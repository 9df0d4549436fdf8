"""Values of files as errors show them: of bounded length and time, whatever the file holds."""

import reprlib
from itertools import islice
from typing import Any

_KINDS = (str, int, dict, list, tuple)  # what files hold; a subclass is shown as its base
_SHORT = (bool, float, complex, type(None), type(...))


class _Bounded(reprlib.Repr):
    """reprlib's cuts, for subclasses too, and without an order for large dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 160, 160, 60

    def repr1(self, x: Any, level: int) -> str:
        """A value of any type, `level` more levels of it."""
        if isinstance(x, _SHORT):
            return repr(x)
        for kind in _KINDS:
            if isinstance(x, kind):
                return str(getattr(self, f"repr_{kind.__name__}")(x, level))
        if isinstance(x, bytes | bytearray):
            return repr(bytes(x[: self.maxother]))
        return f"a value of type {type(x).__name__}"

    def repr_int(self, x: int, level: int) -> str:
        """An integer; Python prints none of more than 4300 digits."""
        bits = int.bit_length(x)
        return super().repr_int(int(x), level) if bits < 4096 else f"an integer of {bits} bits"

    def repr_str(self, x: str, level: int) -> str:
        """A text; only its ends are read."""
        return super().repr_str(str(x) if type(x) is str else str.__str__(x), level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """A dictionary in its own order."""
        if level <= 0:
            return "{...}"
        parts = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(x.items(), self.maxdict)
        ]
        return "{" + ", ".join([*parts, *["..."] * (len(x) > self.maxdict)]) + "}"


_BOUNDED = _Bounded()
_MOST_SAID = 300


def shown(value: object) -> str:
    """A value's text, cut where it is long or deep."""
    return _BOUNDED.repr(value)


def said(error: BaseException) -> str:
    """What another library's error says: one line, cut; its type where it says nothing."""
    text = str(error)[: 4 * _MOST_SAID]
    return " ".join(text.split())[:_MOST_SAID] or type(error).__name__
