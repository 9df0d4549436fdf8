"""Who asked for requests, and is told what comes of them: an event loop, or another process."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from nemo_trt.errors import NemoTrtError

from .request import Output


class Asked(Protocol):
    """One request as whoever asked knows it; times in seconds of `time.perf_counter`."""

    arrival: float
    last_token: float | None


class Listener(Protocol):
    """Is told of its requests, in the engine's thread: it must not block. Equal ones are one."""

    def settle(self, asked: Any, error: NemoTrtError | None) -> None:
        """A request has been accepted, or refused with an error."""

    def tell(self, news: list[tuple[Any, Output]]) -> None:
        """What a step brought to all of its requests."""


class Settled(Asked, Protocol):
    """A request whose news are taken in an event loop."""

    def settle(self, error: NemoTrtError | None) -> None:
        """It has been accepted, or refused with an error."""

    def take(self, output: Output) -> None:
        """There is news of it."""


@dataclass(frozen=True, slots=True)
class LoopListener:
    """Calls requests in the event loop that waits for them, once a step."""

    loop: asyncio.AbstractEventLoop

    def settle(self, asked: Settled, error: NemoTrtError | None) -> None:
        """See `Listener`."""
        self._call(asked.settle, error)

    def tell(self, news: list[tuple[Settled, Output]]) -> None:
        """See `Listener`."""
        self._call(_hand_over, news)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop has been closed: nobody waits
            return


def _hand_over(news: list[tuple[Settled, Output]]) -> None:
    for asked, output in news:
        asked.take(output)
