"""The process of a front end: HTTP over a socket that was opened elsewhere."""

import asyncio
import gc
import signal
import socket
import sys

from nemo_trt.errors import NemoTrtError
from nemo_trt.serve.http.application import application
from nemo_trt.serve.http.connections import AcceptErrors
from nemo_trt.serve.http.server import server_of
from nemo_trt.serve.log import LOG, log_to_stderr
from nemo_trt.serve.running import few_pauses

from .channel import Channel
from .remote_service import RemoteService

BEGIN_S = 60.0
"""Within which the engine's process says what is served: it does at once."""
LINGER_S = 1.0
"""For which a front end whose engine's process has gone says so to whoever asks."""
_FAILED = 1
"""Exit code of a front end that does not start, or whose engine's process has gone."""


def main(channel_file: int, listener_file: int) -> int:
    """Serve until the engine's process says so, or has gone; the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the engine's process, which drains
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=channel_file))
    try:
        _, settings = channel.first(BEGIN_S)
        if settings["log_requests"]:
            log_to_stderr()
        service = RemoteService(channel, settings)
    except (NemoTrtError, OSError) as error:
        LOG.error("A front end does not start: %s", error)
        return _FAILED
    with socket.socket(fileno=listener_file) as listener, few_pauses():
        asyncio.run(_serve(service, listener))
    return _FAILED if service.lost else 0


async def _serve(service: RemoteService, listener: socket.socket) -> None:
    asyncio.get_running_loop().set_exception_handler(AcceptErrors())
    # One connection at a time: the front ends share what comes, whoever is idle most of all.
    server = server_of(application(service), accepted_at_once=1)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    opening = asyncio.create_task(asyncio.to_thread(service.wait))
    stopping = asyncio.create_task(asyncio.to_thread(service.wait_stopped))
    await asyncio.wait({serving, stopping, opening}, return_when=asyncio.FIRST_COMPLETED)
    gc.freeze()
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if service.lost:
        await asyncio.sleep(LINGER_S)
    server.should_exit = True
    await serving
    service.close()  # it was told to end before it had begun
    await asyncio.gather(opening, return_exceptions=True)
    await stopping


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
