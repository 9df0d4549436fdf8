"""Serves the application until a signal: then drains, closes and returns."""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from nemo_trt.errors import FaultError, MachineError

from .connections import (
    ACCEPTED_AT_ONCE,
    MAX_HEADER_BYTES,
    AcceptErrors,
    GuardedProtocol,
    affordable_connections,
)
from .service import Service

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SWITCH_S = 0.0005
"""For which a thread of Python keeps the interpreter while others want it: a tenth of Python's own,
so that workers which prepare requests hold up no token."""
_WAIT_IN_KERNEL = 1024
"""Connections that wait to be accepted."""


def serve_forever(
    app: FastAPI,
    *,
    host: str,
    port: int,
    drain_timeout_s: float,
    on_ready: Callable[[str], None],
) -> None:
    """Serve an application of `create_app` until SIGTERM or SIGINT, then finish what runs.

    While it drains, new requests get 503; a second signal ends the waiting.

    Args:
        port: 0 takes any that is free.
        on_ready: called with the address once requests are taken.

    Raises:
        FaultError: the engine failed while it served; what waited has its answer.
        MachineError: the address cannot be had, or the engine did not open.
    """
    listener, address = listen(host, port)
    with contextlib.closing(listener), _few_pauses():
        asyncio.run(_serve(app, listener, drain_timeout_s, lambda: on_ready(address)))


@contextlib.contextmanager
def _few_pauses() -> Iterator[None]:
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


class _Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would raise them again after its own shutdown."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAIT_IN_KERNEL)  # asyncio accepts as many at once as its backlog has

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _serve(
    app: FastAPI, listener: socket.socket, drain_timeout_s: float, on_ready: Callable[[], None]
) -> None:
    service: Service = app.state.service
    server = _Server(
        uvicorn.Config(
            app,
            http=GuardedProtocol.limited_to(affordable_connections()),
            ws="none",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(AcceptErrors())
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    opening = asyncio.create_task(asyncio.to_thread(service.wait))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done() and not opening.exception():
            gc.freeze()  # a collection over a tokenizer's vocabulary stops everything for 60 ms
            on_ready()
            stopped = asyncio.create_task(asyncio.to_thread(service.wait_stopped))
            await asyncio.wait({serving, stopping, stopped}, return_when=asyncio.FIRST_COMPLETED)
        draining = asyncio.create_task(service.drain(drain_timeout_s))
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        await asyncio.to_thread(service.close)  # what still runs is told so, before it is cut off
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving
        await opening
    if service.failure:
        raise FaultError(f"The engine has failed: {service.failure}. Start the server again.")
