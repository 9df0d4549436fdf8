"""A served engine and a front end in one process: only a socket pair joins them."""

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from nemo_trt.serve import ServeOptions
from nemo_trt.serve.http.application import application
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.serve.processes.channel import Channel
from nemo_trt.serve.processes.hub import Hub
from nemo_trt.serve.processes.remote_service import RemoteService
from tests.waiting import LIMIT_S


def create_app_apart(
    bundle: Path, where: str = "cpu", *, options: ServeOptions, **rows: Any
) -> FastAPI:
    """Like `create_app`; the engine is behind a hub, in a thread of its own.

    `app.state.hub` is the hub. The thread ends with the application.
    """
    ours, theirs = socket.socketpair()
    hub = Hub(Lifetime.begin(bundle, where, options, **rows), created=1)
    threading.Thread(target=lambda: asyncio.run(_serve(hub, Channel(ours)))).start()
    channel = Channel(theirs)
    _, settings = channel.first(LIMIT_S)
    app = application(RemoteService(channel, settings))
    app.state.hub = hub
    return app


async def _serve(hub: Hub, channel: Channel) -> None:
    link = hub.join(channel)
    await asyncio.to_thread(hub.lifetime.wait)
    hub.tell_state()
    await asyncio.wait_for(link.lost.wait(), 4 * LIMIT_S)
    hub.leave(link)
    hub.close()
