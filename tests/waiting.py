"""Waiting for what another thread or process does, by its effect; no load meets the limit."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

LIMIT_S = 300
_STEP_S = 0.02


def until(holds: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Return when a condition holds.

    Raises:
        AssertionError: it did not within the limit.
    """
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"{holds} must hold within {limit_s} s"
        time.sleep(_STEP_S)


async def until_async(holds: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """The same within an event loop, which goes on meanwhile."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"{holds} must hold within {limit_s} s"
        await asyncio.sleep(_STEP_S)


@contextmanager
def within(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Turn a block that hangs into one that fails. For the main thread of a process.

    Raises:
        pytest.fail.Exception: the block, whatever it waits for, did not end within the limit.
            Raised again every `limit_s` until the block ends.
    """

    def over(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"process {os.getpid()} must not wait for over {limit_s} s")

    handler = signal.signal(signal.SIGALRM, over)
    timer = signal.setitimer(signal.ITIMER_REAL, limit_s, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
