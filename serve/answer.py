"""The answer to one request, as an async iterator, whichever process the engine is in."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol, Self

from nemo_trt.engines.generation import TokenEvent
from nemo_trt.errors import DeadlineError, NemoTrtError

from .request import Ended, Output, Request


class Answers(Protocol):
    """Takes requests and ends them: an engine, as an answer sees it."""

    def submit(self, answer: "Answer", request: Request, loop: asyncio.AbstractEventLoop) -> None:
        """Queue a request: `answer.settle` is told whether it was accepted, `answer.take` what
        comes of it, both in `loop`."""

    def cancel(self, answer: "Answer") -> None:
        """End an answer's request, which may have ended already."""


class Answer:
    """The answer to one request, an async iterator over its tokens that can be used once.

    Leaving the loop early does not cancel the request: use `async with`, or call `cancel`.

    Attributes:
        ended: how the request ended, with its token usage; None until then.
    """

    def __init__(self, engine: Answers, request: Request) -> None:
        self.ended: Ended | None = None
        self.arrival = time.perf_counter()
        self.last_token: float | None = None
        self._engine, self._request = engine, request
        self._loop = asyncio.get_running_loop()
        self._news: deque[Output] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._accepted: asyncio.Future[None] | None = None

    @property
    def prompt(self) -> Sequence[int]:
        """The prompt's tokens, as they were given."""
        return self._request.prompt

    async def accepted(self) -> Self:
        """Wait until the scheduler accepts the request; iterating waits as well.

        Raises:
            CapacityError, QueueFullError, RequestError: see `Scheduler.submit`.
            StateError: the engine is closed, shutting down, or has failed.
        """
        if self._accepted is None:
            self._accepted = self._loop.create_future()
            self._accepted.add_done_callback(_look_at)
            self._engine.submit(self, self._request, self._loop)
        await asyncio.shield(self._accepted)
        return self

    def cancel(self) -> None:
        """End the request and free its slot within one step. Does nothing once it has ended."""
        if self._accepted is not None and self.ended is None:
            self._engine.cancel(self)

    def settle(self, error: NemoTrtError | None) -> None:
        """The engine accepted the request, or refused it; called in the answer's event loop."""
        if self._accepted is None or self._accepted.done():  # its loop is closing
            return
        if error:
            self._accepted.set_exception(error)
        else:
            self._accepted.set_result(None)

    def take(self, output: Output) -> None:
        """The engine has news of the request; called in the answer's event loop."""
        self._news.append(output)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def batches(self) -> AsyncIterator[list[TokenEvent]]:
        """The tokens, as many at a time as have come. Raises what iterating raises."""
        await self.accepted()
        while self.ended is None:
            if not self._news:
                self._waiter = self._loop.create_future()
                await self._waiter
            events = []
            while self._news and self.ended is None:
                output = self._news.popleft()
                self.ended = output.ended
                if output.event:
                    events.append(output.event)
            if events:
                yield events
        if self.ended.reason == "deadline":
            raise DeadlineError("The request's time was over before its answer was complete.")
        if self.ended.error:
            raise self.ended.error

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        async for events in self.batches():
            for event in events:
                yield event

    async def __aenter__(self) -> Self:
        try:
            return await self.accepted()
        except BaseException:  # the task was cancelled: nobody leaves what was not entered
            self.cancel()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


def _look_at(accepted: "asyncio.Future[None]") -> None:
    """Asyncio complains of exceptions that nobody looked at; who asked may have gone."""
    if not accepted.cancelled():
        accepted.exception()
