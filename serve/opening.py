"""Opens what takes long without holding the event loop."""

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeVar


class Closable(Protocol):
    """What has to be closed."""

    def close(self) -> None:
        """Free it; may take a while."""


Thing = TypeVar("Thing", bound=Closable)


class Opening(Generic[Thing]):
    """Something that a thread opens: await it, or enter it with `async with`, which closes it.

    Args:
        make: called once, in a thread.
    """

    def __init__(self, make: Callable[[], Thing]) -> None:
        self._make = make
        self._made: Thing | None = None
        self._unwanted = False
        self._lock = threading.Lock()

    def __await__(self) -> Generator[Any, None, Thing]:
        return self._opened().__await__()

    async def __aenter__(self) -> Thing:
        return await self

    async def __aexit__(self, *_: object) -> None:
        if self._made is not None:
            await asyncio.to_thread(self._made.close)

    async def _opened(self) -> Thing:
        future = asyncio.get_running_loop().run_in_executor(None, self._open)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:  # the thread goes on, and nobody waits for what it opens
            self._unwanted = True
            self._close_unwanted()
            raise

    def _open(self) -> Thing:
        self._made = made = self._make()
        self._close_unwanted()
        return made

    def _close_unwanted(self) -> None:
        with self._lock:
            if self._unwanted and self._made is not None:
                self._made.close()
