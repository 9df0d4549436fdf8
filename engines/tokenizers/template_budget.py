"""What rendering one template may cost.

A template is a program from a stranger. Its loops are counted, and each value is measured when it
is made, before the memory is taken. So every value's size is known to be bounded, sharing counted
out (`[x, x]` is twice `x`), and one operation on it is short.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from nemo_trt.errors import RequestError

STEP = 64
"""Units of one loop round. A unit takes about as long as a few characters."""
CHARACTERS = 4
"""Characters that a unit copies."""
ENTRY = 16
"""Units of one entry of a list, tuple or dict."""
_FIXED = 2**25
_PER_INPUT = 128  # what a long conversation may cost besides, up to four times as much again
_MOST_SECONDS = 5.0  # of this thread's own CPU time
_MOST_DEPTH = 200
MOST_BITS = 2**12
"""Of a number."""
_CLOCK_EVERY = 2**16

_VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[type[Any], ...] = (list, tuple, dict, set, frozenset, *_VIEWS)


class Budget:
    """Counts one rendering's work.

    Args:
        inputs: what the template is given; a long conversation may cost more.

    Raises:
        RequestError: the inputs are nested too deeply.
    """

    def __init__(self, inputs: Mapping[str, object]) -> None:
        self._left, self._next_look = 2**62, 0
        size = self.size(dict(inputs))
        self._left = _FIXED + min(_PER_INPUT * size, 4 * _FIXED)
        self._next_look = self._left - _CLOCK_EVERY
        self._end = time.thread_time() + _MOST_SECONDS

    def charge(self, units: int) -> None:
        """Count work that is about to be done.

        Raises:
            RequestError: it is more than may be done.
        """
        self._left -= units
        if self._left < 0:
            raise RequestError(
                "The chat template must end after a bounded number of steps and characters; this "
                "conversation takes it beyond them."
            )
        if self._left < self._next_look:
            self._next_look = self._left - _CLOCK_EVERY
            if time.thread_time() > self._end:
                raise RequestError(
                    f"The chat template must end within {_MOST_SECONDS:g} s of CPU time."
                )

    def copy(self, characters: int) -> None:
        """Count characters that are about to be made, or read one by one; see `charge`."""
        self.charge(characters // CHARACTERS)

    def size(self, value: Any, indent: int = 0) -> int:
        """Characters that a value takes as text, about; its entries are charged.

        Args:
            indent: characters that each level of nesting puts before an entry.

        Raises:
            RequestError: the value is too large or nested too deeply, or a number has too many
                digits.
        """
        if isinstance(value, str):
            return len(value)
        total = 0
        levels: list[tuple[int, Iterable[Any]]] = [(0, (value,))]
        while levels:
            depth, entries = levels.pop()
            for entry in entries:
                if isinstance(entry, str | bytes):
                    total += len(entry) + 4
                elif isinstance(entry, _CONTAINERS):
                    self.charge(ENTRY * (len(entry) + 2))
                    total += (ENTRY + indent * (depth + 1)) * len(entry)
                    if depth >= _MOST_DEPTH or total > CHARACTERS * self._left:
                        self._refuse_depth_or_charge(depth, total)
                    levels.append((depth + 1, entry))
                    if isinstance(entry, dict):
                        levels.append((depth + 1, entry.values()))
                elif isinstance(entry, int) and entry.bit_length() > MOST_BITS:
                    raise RequestError(
                        f"Numbers of the chat template must have at most {MOST_BITS} bits."
                    )
                else:
                    total += ENTRY
        return total

    def _refuse_depth_or_charge(self, depth: int, total: int) -> None:
        if depth >= _MOST_DEPTH:
            raise RequestError(
                f"Values of the chat template must be nested at most {_MOST_DEPTH} deep."
            )
        self.copy(total)

    def made(self, value: Any) -> Any:
        """Measure a value that was just made, and return it."""
        if isinstance(value, str | bytes):
            self.copy(len(value))
        elif isinstance(value, (*_CONTAINERS, int)):
            self.size(value)
        return value


_ACTIVE: ContextVar[Budget] = ContextVar("budget of the template that is rendered")


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Count what templates do in this thread, while the block runs."""
    token = _ACTIVE.set(budget)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active() -> Budget:
    """The budget of the template that is rendered now.

    Raises:
        LookupError: none is: the template is only being compiled, where nothing may be computed.
    """
    return _ACTIVE.get()
