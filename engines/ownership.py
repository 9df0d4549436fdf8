"""Who may use an object: the process that opened it, and one thread at a time."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nemo_trt.errors import StateError


class Ownership:
    """A guard around each call of an object. It refuses and never waits.

        with self._ownership:
            ...

    Args:
        what: the object's name in errors, with its article.
    """

    def __init__(self, what: str) -> None:
        self._what, self._pid = what, os.getpid()
        self._lock = threading.Lock()

    @property
    def is_here(self) -> bool:
        """Whether this is the process that opened the object, and no fork of it."""
        return os.getpid() == self._pid

    def require_here(self) -> None:
        """Refuse a process that was forked after the object was opened.

        Raises:
            StateError: this is one; threads and a GPU's memory do not survive a fork.
        """
        if not self.is_here:
            raise StateError(
                f"Cannot use {self._what} in a process that was forked after it was opened. Open "
                "it in the process that uses it."
            )

    def __enter__(self) -> None:
        """Begin a call.

        Raises:
            StateError: another process opened the object, or another thread is in a call.
        """
        self.require_here()
        if not self._lock.acquire(blocking=False):
            raise StateError(
                f"Cannot use {self._what} from two threads at once. Open one for each thread."
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Begin a call once no other thread is in one."""
        self.require_here()
        with self._lock:
            yield
