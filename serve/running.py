"""Serving until a signal: then what runs is finished, and all is closed."""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from nemo_trt.errors import FaultError, MachineError

_SWITCH_S = 0.0005
"""For which a thread of Python keeps the interpreter while others want it: a tenth of Python's own,
so that workers which prepare requests hold up no token."""


class Served(Protocol):
    """What serves: its engine is in this process."""

    @property
    def failure(self) -> str | None:
        """What kept the engine from opening, or stopped it since."""

    def wait_stopped(self) -> None:
        """Block until the engine has stopped."""

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more and wait until all is answered."""

    def close(self) -> None:
        """End what runs and free the engine."""


@contextlib.contextmanager
def few_pauses() -> Iterator[None]:
    """Settings of this process, for the time that it serves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens, and its address as a URL.

    Raises:
        MachineError: the address cannot be had.
    """
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise MachineError(
            f"{host}:{port} must be free to listen on: {error.strerror or error}. "
            "Choose another --host or --port."
        ) from error
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


def signal_events() -> tuple[asyncio.Event, asyncio.Event]:
    """Events that SIGTERM and SIGINT set in the running loop: the first signal one, later ones the
    other."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop, hurry


async def serve_until_signal(
    served: Served,
    opening: "asyncio.Task[None]",
    serving: "asyncio.Task[None]",
    *,
    end: Callable[[], None],
    drain_timeout_s: float,
    on_ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, or until the engine stops; a second signal ends the waiting.

    Args:
        opening: done when requests are taken, or with the error that keeps them from being taken.
        serving: takes requests until `end` has been called.

    Raises:
        FaultError: the engine failed while it served; what waited has its answer.
        MachineError: the engine did not open.
    """
    stop, hurry = signal_events()
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done() and not opening.exception():
            gc.freeze()  # a collection over a tokenizer's vocabulary stops everything for 60 ms
            on_ready()
            stopped = asyncio.create_task(asyncio.to_thread(served.wait_stopped))
            await asyncio.wait({serving, stopping, stopped}, return_when=asyncio.FIRST_COMPLETED)
        draining = asyncio.create_task(served.drain(drain_timeout_s))
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        await asyncio.to_thread(served.close)  # requests that still run get an error
    finally:
        stopping.cancel()
        end()
        await serving
        await opening
    if served.failure:
        raise FaultError(f"The engine has failed: {served.failure}. Start the server again.")
