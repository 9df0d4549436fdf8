"""Starts front ends, watches them, and ends them with the server."""

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable

from nemo_trt.child import module_command
from nemo_trt.errors import FaultError
from nemo_trt.serve.keys import KEYS_VARIABLE
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.serve.log import LOG
from nemo_trt.serve.running import few_pauses, listen, serve_until_signal

from .channel import Channel
from .hub import Hub

END_S = 10.0
"""That a front end has to finish what it sends, once nothing more is answered."""
PAUSE_S = 1.0
"""Before a front end is started again that did not start."""
_COMMAND = module_command("nemo_trt.serve.processes.front_end")


def serve_by_front_ends(
    lifetime: Lifetime,
    *,
    front_ends: int,
    host: str,
    port: int,
    drain_timeout_s: float,
    on_ready: Callable[[str], None],
) -> None:
    """Serve an engine of this process until SIGTERM or SIGINT; HTTP is done by other processes.

    A front end that ends is replaced; its clients' requests are cancelled. One of the first that
    does not start ends the server. When this process ends,
    however it does, so do the front ends.

    Args:
        lifetime: of the engine, which this closes.
        front_ends: processes, 1 or more.
        port: 0 takes any that is free.
        on_ready: called with the address once requests are taken.

    Raises:
        FaultError: the engine failed while it served, or a front end did not start.
        MachineError: the address cannot be had, or the engine did not open.
    """
    listener, address = listen(host, port)
    with contextlib.closing(listener), few_pauses():
        serving = _serve(lifetime, listener, front_ends, drain_timeout_s, lambda: on_ready(address))
        asyncio.run(serving)


async def _serve(
    lifetime: Lifetime,
    listener: socket.socket,
    count: int,
    drain_timeout_s: float,
    on_ready: Callable[[], None],
) -> None:
    hub = Hub(lifetime, created=int(time.time()))
    front_ends = FrontEnds(hub, listener)
    await serve_until_signal(
        hub,
        asyncio.create_task(front_ends.opened(count)),
        asyncio.create_task(front_ends.run(count)),
        end=front_ends.stop,
        drain_timeout_s=drain_timeout_s,
        on_ready=on_ready,
    )


class FrontEnds:
    """The processes before one hub.

    Args:
        listener: the socket that they all accept connections from.
    """

    def __init__(self, hub: Hub, listener: socket.socket) -> None:
        self._hub, self._listener = hub, listener
        self._stopping = asyncio.Event()
        self._ready = asyncio.Semaphore(0)

    async def opened(self, count: int) -> None:
        """Wait until the engine is open and so many front ends take requests.

        Raises:
            MachineError: the engine did not open.
        """
        try:
            await asyncio.to_thread(self._hub.lifetime.wait)
        finally:
            self._hub.tell_state()
        stopping = asyncio.create_task(self._stopping.wait())
        for _ in range(count):
            ready = asyncio.create_task(self._ready.acquire())
            await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
        stopping.cancel()

    async def run(self, count: int) -> None:
        """Keep so many front ends until `stop`.

        Raises:
            FaultError: one ended before it took requests, and there had been none in its place.
        """
        tasks = [asyncio.create_task(self._keep()) for _ in range(count)]
        try:
            await asyncio.gather(*tasks)
        finally:
            self.stop()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        """Have the front ends end; `run` returns when they have."""
        self._stopping.set()

    async def _keep(self) -> None:
        has_served = False
        while not self._stopping.is_set():
            process, channel = _started(self._listener)
            link = self._hub.join(channel)
            try:
                await _any(link.ready, link.lost, self._stopping)
                if link.ready.is_set():
                    has_served = True
                    self._ready.release()
                await _any(link.lost, self._stopping)
                if not link.lost.is_set():
                    link.stop()
                    await _any(link.lost, timeout_s=END_S)
            finally:
                self._hub.leave(link)
                code = await asyncio.shield(asyncio.to_thread(_ended, process))
                channel.close()
            if self._stopping.is_set():
                return
            if not has_served:
                raise FaultError(
                    f"A front end must start, but it ended with code {code}. Its own message "
                    "stands above; --front-ends 0 serves from one process."
                )
            LOG.error("a front end ended with code %d; another one is started", code)
            if not link.ready.is_set():
                await _any(self._stopping, timeout_s=PAUSE_S)


async def _any(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait until one is set, or the time is over."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _started(listener: socket.socket) -> tuple["subprocess.Popen[bytes]", Channel]:
    """A front end, and the channel to it. It has no key in its environment or its arguments."""
    ours, theirs = socket.socketpair()
    files = (theirs.fileno(), listener.fileno())
    environment = {name: value for name, value in os.environ.items() if name != KEYS_VARIABLE}
    with theirs:
        process = subprocess.Popen(
            [*_COMMAND, *map(str, files)],
            stdin=subprocess.DEVNULL,
            pass_fds=files,
            env=environment,
            process_group=0,  # the terminal's Ctrl-C is for the engine's process
        )
    return process, Channel(ours)


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process that is to end; its exit code."""
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
