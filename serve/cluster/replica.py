"""A replica: the whole server over an engine of its own, without a socket."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from starlette.types import Message

from nemo_trt.bundle import Bundle
from nemo_trt.engines.ort_session import affordable_seq_len
from nemo_trt.errors import StateError
from nemo_trt.serve.http import create_app
from nemo_trt.serve.lifetime import CACHE_SHARE
from nemo_trt.serve.log import log_to_stderr
from nemo_trt.verdict import read_verdict

from .call import Call
from .cluster_options import ClusterOptions


class Replica:
    """Ray makes one per GPU; it takes requests once the engine is open.

    Raises:
        BundleError, BuildError, MachineError: see `create_app`.
    """

    def __init__(self, options: ClusterOptions) -> None:
        self._name = serve.get_replica_context().replica_tag
        log_to_stderr()
        bundle, length = Bundle.open(options.bundle), options.max_seq_len
        if length is None and options.where.kind == "cpu":
            share = CACHE_SHARE / options.most_replicas  # they may all be on this machine
            length = affordable_seq_len(bundle.config, options.max_batch, share=share)
            if judged := read_verdict(bundle, options.where).coverage:
                length = min(length, judged.max_seq_len)
        self._app = create_app(
            bundle,
            options.where,
            options=options.server,
            max_batch=None if options.where.kind == "engine" else options.max_batch,
            max_seq_len=length,
            threads=options.compute_threads,
        )
        self._service = self._app.state.service
        self._service.wait()
        gc.freeze()  # see `serve_forever`

    async def answer(self, call: Call) -> AsyncIterator[list[Message]]:
        """ASGI's messages of the answer, as many at a time as there are.

        When Ray cancels this, or nobody reads on, the application is told that the client is gone.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        given, gone = False, asyncio.Event()

        async def receive() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": call.body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(call.scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            ended = False
            while not ended:
                found = [await messages.get()]
                while not messages.empty():
                    found.append(messages.get_nowait())
                ended = found[-1] is None
                if batch := [message for message in found if message is not None]:
                    yield batch
            await running
        finally:
            gone.set()
            await running

    def describe(self) -> dict[str, Any]:
        """What the service says of itself, whose replica this is, and its process."""
        return {"replica": self._name, "pid": os.getpid(), **self._service.describe()}

    def metrics(self) -> tuple[str, str]:
        """This replica's name, and its metrics in Prometheus's text format."""
        return self._name, self._service.metrics.text().decode()

    async def close(self) -> None:
        """End what runs, with an error that says so, and free the engine."""
        await asyncio.to_thread(self._service.close)

    def check_health(self) -> None:
        """Ray asks this every few seconds, and replaces a replica that raises.

        Raises:
            StateError: the engine has failed.
        """
        if self._service.state == "failed":
            raise StateError("The engine has failed; this replica must be started again.")

    def __del__(self) -> None:
        """Ray calls this before it ends the process."""
        if hasattr(self, "_service"):
            self._service.close()
