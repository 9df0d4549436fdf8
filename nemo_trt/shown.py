"""Values of files as errors show them: of bounded length and time, whatever the file holds."""

import reprlib

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 3, 160, 160, 60


def shown(value: object) -> str:
    """A value's text, cut where it is long or deep."""
    try:
        return _REPR.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a value of type {type(value).__name__}"
