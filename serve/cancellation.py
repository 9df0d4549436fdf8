"""Tells work in a thread that nobody waits for its result any more."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

Result = TypeVar("Result")


class Cancellation:
    """One call's: set by whoever waited for it, read by the work within it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._stop: Callable[[], object] | None = None

    def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """What a function returns that finds this one as the `current`."""
        context = copy_context()
        context.run(_CURRENT.set, self)
        return context.run(function, *arguments)

    def cancel(self) -> None:
        """Have the work end: at its next `require_wanted`, or by the `stop` of what runs now."""
        with self._lock:
            self._cancelled = True
            if self._stop is not None:
                self._stop()

    def require_wanted(self) -> None:
        """Go on only while somebody waits.

        Raises:
            CancelledError: nobody does.
        """
        if self._cancelled:
            raise CancelledError

    @contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Have `cancel` call `stop` during this block, and at no other time.

        Args:
            stop: ends what the block waits for; called from another thread, must not block.

        Raises:
            CancelledError: nobody waits, before the block or at its end.
        """
        with self._lock:
            self.require_wanted()
            self._stop = stop
        try:
            yield
        finally:
            with self._lock:
                self._stop = None
        self.require_wanted()


_CURRENT: ContextVar[Cancellation] = ContextVar("cancellation")


def current() -> Cancellation:
    """That of the call that runs here; outside of any, one that is never cancelled."""
    return _CURRENT.get(None) or Cancellation()
