"""Threads for what a request needs before the engine runs it: none of it holds the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nemo_trt.engines.ownership import Ownership
from nemo_trt.errors import QueueFullError
from nemo_trt.serve.cancellation import Cancellation

Result = TypeVar("Result")


class Workers:
    """Runs calls in threads, in order of arrival.

    A call that nobody waits for any more is dropped before it begins. One that has begun is told
    by its `Cancellation`, and must take bounded time in any case.

    Args:
        threads: calls that run at once.
        max_waiting: calls that may wait.
    """

    def __init__(self, name: str, *, threads: int, max_waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"nemo-trt {name}")
        self._ownership = Ownership("a server")
        self._limit = threads + max_waiting
        self._pending = 0

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """What a function returns.

        Raises:
            QueueFullError: too many calls wait.
            StateError: this process was forked from the one whose threads they are.
        """
        self._ownership.require_here()
        if self._pending >= self._limit:
            raise QueueFullError(f"{self._pending} requests are being prepared already. Try later.")
        self._pending += 1
        cancellation = Cancellation()
        future = self._threads.submit(cancellation.run, function, *arguments)
        future.add_done_callback(self._over)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _over(self, _: object) -> None:
        self._pending -= 1  # under the interpreter's lock, like the addition
