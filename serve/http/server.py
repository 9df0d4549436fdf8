"""Serves the application until a signal: then drains, closes and returns."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from nemo_trt.serve.running import few_pauses, listen, serve_until_signal

from .connections import (
    ACCEPTED_AT_ONCE,
    MAX_HEADER_BYTES,
    AcceptErrors,
    GuardedProtocol,
    affordable_connections,
)
from .service import Service

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
    with contextlib.closing(listener), few_pauses():
        asyncio.run(_serve(app, listener, drain_timeout_s, lambda: on_ready(address)))


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


def server_of(app: FastAPI, *, accepted_at_once: int = ACCEPTED_AT_ONCE) -> uvicorn.Server:
    """A server of an application that leaves signals alone and bounds its connections."""
    return _Server(
        uvicorn.Config(
            app,
            http=GuardedProtocol.limited_to(affordable_connections()),
            ws="none",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            backlog=accepted_at_once,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )


async def _serve(
    app: FastAPI, listener: socket.socket, drain_timeout_s: float, on_ready: Callable[[], None]
) -> None:
    service: Service = app.state.service
    server = server_of(app)
    asyncio.get_running_loop().set_exception_handler(AcceptErrors())

    def end() -> None:
        server.should_exit = True

    await serve_until_signal(
        service,
        asyncio.create_task(asyncio.to_thread(service.wait)),
        asyncio.create_task(server.serve(sockets=[listener])),
        end=end,
        drain_timeout_s=drain_timeout_s,
        on_ready=on_ready,
    )
