"""Runs the load: clients that wait for their answers, or a stream of arrivals that does not."""

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from nemo_trt.progress import Progress, Silent

from .arrivals import offsets
from .client import Client
from .options import LoadOptions
from .probe import Server, probe
from .record import Record
from .workload import Planned, Workload

Result = TypeVar("Result")
_BEAT_S = 0.02
_AFTER_REFUSAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a measurement gave.

    Attributes:
        records: in the order in which the requests were due; no warm-up among them.
        started_at: seconds since 1970.
        duration_s: from the first request's due time to the last byte.
        loop_lag_s: how much too late each of the generator's own beats came, one every 20 ms.
        cpu_share: seconds of processor time a second that this process took.
        broken_off: it was stopped before its end.
    """

    options: LoadOptions
    server: Server
    records: list[Record]
    started_at: float
    duration_s: float
    loop_lag_s: list[float]
    cpu_share: float
    broken_off: bool


async def run_load(
    options: LoadOptions, *, progress: Progress | None = None, stop: asyncio.Event | None = None
) -> LoadResult:
    """Probe the server, warm it up, and put the load on it.

    Args:
        stop: when it is set, what still runs is broken off and the result is that of what there is.

    Raises:
        RequestError, ServerError: see `probe`; later failures are in the records.
    """
    progress, stop = progress or Silent(), stop or asyncio.Event()
    async with Client(options) as client:
        progress.phase("probe the server")
        server = await _unless(stop, probe(client, options))
        workload = Workload(
            options, model=server.model, include_usage=server.include_usage, scale=server.scale
        )
        run = _Run(options, client, workload, progress)
        if options.num_warmup:
            progress.phase("warm up", options.num_warmup)
            await _unless(stop, run.warm_up())
        by_count = options.num_requests is not None
        total = options.num_requests or round(options.duration_s or 0)
        progress.phase("measure", total)
        client.restart()
        started_at, cpu = time.time(), time.process_time()
        beats = asyncio.create_task(run.beat(advance=not by_count))
        measured = asyncio.create_task(run.open_loop() if options.rate else run.closed_loop())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({measured, stopping}, return_when=asyncio.FIRST_COMPLETED)
        duration = client.now()
        cpu = time.process_time() - cpu
        broken_off = not measured.done()
        for task in (measured, stopping, beats):
            task.cancel()
        await asyncio.gather(measured, stopping, beats, return_exceptions=True)
        if not broken_off:
            measured.result()
    return LoadResult(
        options=options,
        server=server,
        records=sorted(run.records, key=lambda record: record.index),
        started_at=started_at,
        duration_s=duration,
        loop_lag_s=run.lag_s,
        cpu_share=cpu / duration,
        broken_off=broken_off,
    )


class _Run:
    def __init__(
        self, options: LoadOptions, client: Client, workload: Workload, progress: Progress
    ) -> None:
        self._options, self._client, self._workload = options, client, workload
        self._progress = progress
        self.records: list[Record] = []
        self.lag_s: list[float] = []

    async def warm_up(self) -> None:
        """As many at once as a closed loop has clients, or four."""
        indexes = iter(range(self._options.num_warmup))

        async def client() -> None:
            for index in indexes:
                planned = self._workload.request(index, warmup=True)
                now = self._client.now()
                record = Record(
                    index=-1, intended_s=now, planned_output_tokens=planned.output_tokens
                )
                await self._client.send(record, planned.body)
                self._progress.advance()

        await _together(client() for _ in range(self._options.concurrency or 4))

    async def closed_loop(self) -> None:
        """Each client sends when it has its answer. One that was refused waits, as it was told."""
        indexes = self._indexes()

        async def client() -> None:
            for index in indexes:
                planned = self._workload.request(index)
                intended = self._client.now()
                if self._over(intended):
                    return
                record = await self._send(index, planned, intended)
                if record.outcome == "rejected":
                    await asyncio.sleep(record.retry_after_s or _AFTER_REFUSAL_S)

        await _together(client() for _ in range(self._options.concurrency or 1))

    async def open_loop(self) -> None:
        """Requests go out when they are due. A late one keeps the time at which it was due."""
        options = self._options
        due = offsets(options.rate or 1.0, options.arrivals, options.seed)
        async with asyncio.TaskGroup() as group:
            for index, offset in zip(self._indexes(), due, strict=False):
                if self._over(offset):
                    return
                planned = self._workload.request(index)
                await asyncio.sleep(max(0.0, offset - self._client.now()))
                group.create_task(self._send(index, planned, offset))

    async def beat(self, *, advance: bool) -> None:
        """Note how late this process's own loop is, and count seconds where these are the goal."""
        counted = 0
        while True:
            due = self._client.now() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            now = self._client.now()
            self.lag_s.append(now - due)
            if advance and int(now) > counted:
                self._progress.advance(int(now) - counted)
                counted = int(now)

    def _indexes(self) -> Iterator[int]:
        limit = self._options.num_requests
        return iter(range(limit)) if limit is not None else itertools.count()

    def _over(self, offset: float) -> bool:
        return self._options.duration_s is not None and offset >= self._options.duration_s

    async def _send(self, index: int, planned: Planned, intended: float) -> Record:
        record = Record(
            index=index,
            intended_s=intended,
            planned_output_tokens=planned.output_tokens,
            cancel_after=planned.cancel_after,
        )
        self.records.append(record)
        await self._client.send(record, planned.body)
        if self._options.num_requests is not None:
            self._progress.advance()
        return record


async def _together(clients: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`; cancelled, and so are we, when `stop` is set before."""
    task = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise asyncio.CancelledError
        return task.result()
    finally:
        for one in (task, stopping):
            one.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)
