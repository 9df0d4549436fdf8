"""Waiting for what another thread or process does, by its effect; no load meets the limit."""

import asyncio
import time
from collections.abc import Callable

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
