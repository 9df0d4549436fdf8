"""What hostile clients cost a server and its other clients.

python benchmarks/attacks.py BUNDLE [--seconds S] [--silent N] [--size F] [--only WORDS]
                             [--json FILE]

A server of its own process, with a limit of 256 open files and one compute thread. Every attack
runs twice: alone, for the processor time and the memory that it costs, and beside a neighbour that
streams one answer after the other, for the delay of its tokens. The delay is held against the
worst gap beside ordinary neighbours, whose prompts fill every step. Of each gap the time is told
apart for which the two threads that make tokens (engine and event loop) waited for a processor:
that is the machine's, not the server's.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from attack_list import Attack, attacks, get
from client import Client
from serving_process import ServerProcess, launch

MAX_FILES, SLOTS, CONTEXT = 256, 8, 2048
MORE_DELAY_S, MEMORY_FACTOR = 0.050, 5
SLACK_BYTES, GRAMMAR_BYTES = 2**22, 2**27
"""Memory that small bodies may cost, and that a grammar may."""
_SETTLE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The longest time between two tokens of a neighbour.

    Attributes:
        waited_s: of it, what the threads that make tokens waited for a processor.
    """

    seconds: float = 0.0
    waited_s: float = 0.0

    @property
    def work_s(self) -> float:
        """What is the server's own."""
        return self.seconds - self.waited_s


class Neighbour:
    """Streams answers, one after the other, in a thread of its own.

    Attributes:
        worst: the gap that was longest without the time for which a processor was waited.
        tokens: that came.
        failed: what ended its answers, if anything did.
    """

    def __init__(self, server: ServerProcess) -> None:
        self.worst, self.tokens, self.failed = Gap(), 0, ""
        self._server = server
        self._stop, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    async def __aenter__(self) -> "Neighbour":
        self._thread.start()
        await asyncio.to_thread(self._begun.wait, 60)
        self.worst = Gap()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        body = {
            "prompt": [5] * 16,
            "max_tokens": CONTEXT - 32,
            "stream": True,
            "ignore_eos": True,
            "speculate": False,
            "temperature": 0,
        }
        with httpx.Client(base_url=self._server.url, timeout=600) as client:
            while not self._stop.is_set() and not self.failed:
                with client.stream("POST", "/v1/completions", json=body) as response:
                    self._read(response)
        self._begun.set()

    def _read(self, response: httpx.Response) -> None:
        last = None
        for line in response.iter_lines():
            if self._stop.is_set():
                return
            if line == "data: [DONE]":
                return
            if not line.startswith("data: ") or '"error"' in line:
                self.failed = self.failed or line
                continue
            now, waited = time.perf_counter(), self._waited()
            if last is not None:
                gap = Gap(seconds=now - last[0], waited_s=max(0.0, waited - last[1]))
                self.worst = max(self.worst, gap, key=lambda found: found.work_s)
            last = now, waited
            self.tokens += 1
            if self.tokens == 8:
                self._begun.set()

    def _waited(self) -> float:
        """Seconds that event loop and engine have waited for a processor."""
        threads = self._server.threads()
        loop = threads.pop(self._server.pid)
        return loop[1] + max(threads.values())[1]  # the engine's has run longest


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. `cpu_s` is of one request, `memory_bytes` of all at once."""

    name: str
    outcome: dict[str, int]
    body_bytes: int
    cpu_s: float
    memory_bytes: int
    gap: Gap
    own_gap: Gap
    held: bool
    not_held: list[str]


async def measure(server: ServerProcess, attack: Attack, alone: Gap, stated: Gap) -> Row:
    """Run an attack by itself, then beside a neighbour."""
    server.forget_peak()
    before, cpu_before = server.rss_bytes(), server.cpu_s()
    outcome = await attack.run(server.url)
    memory = server.peak_bytes() - before
    cpu_s = (server.cpu_s() - cpu_before) / attack.requests
    await _rested(server)
    async with Neighbour(server) as neighbour:
        outcome += await attack.run(server.url)
        await asyncio.sleep(_SETTLE_S)
    health = await get(server.url, "/health")
    wrong = [f"answered {found}" for found in outcome if found not in attack.met]
    if health != "200":
        wrong.append(f"health is {health}")
    if neighbour.failed:
        wrong.append(f"neighbour got {neighbour.failed[:80]}")
    if neighbour.worst.work_s > stated.work_s + MORE_DELAY_S:
        wrong.append("delay")
    allowed = MEMORY_FACTOR * attack.body_bytes * attack.requests + SLACK_BYTES
    if attack.body_bytes and memory > (GRAMMAR_BYTES if attack.compiled else allowed):
        wrong.append("memory")
    return Row(
        name=attack.name,
        outcome=dict(outcome),
        body_bytes=attack.body_bytes,
        cpu_s=cpu_s,
        memory_bytes=memory,
        gap=neighbour.worst,
        own_gap=alone,
        held=not wrong,
        not_held=wrong,
    )


async def _rested(server: ServerProcess) -> None:
    """Wait until nothing runs any more."""
    while True:
        found = await server.metrics()
        if not found["nemo_trt_requests_running"] + found["nemo_trt_requests_waiting"]:
            return
        await asyncio.sleep(0.05)


async def worst_gap(server: ServerProcess, work: Callable[[], Awaitable[object]]) -> Gap:
    """A neighbour's longest gap while something else goes on."""
    async with Neighbour(server) as neighbour:
        await work()
    return neighbour.worst


async def ordinary_load(server: ServerProcess, seconds: float) -> None:
    """Clients with prompts that fill the steps, in all slots but one."""
    random = np.random.default_rng(0)
    requests = (
        {"prompt": random.integers(1000, 40_000, CONTEXT - 128).tolist(), "max_tokens": 32}
        for _ in iter(int, 1)
    )
    async with Client(server.url) as client:
        await client.loop(requests, clients=SLOTS - 1, seconds=seconds)


async def run(arguments: argparse.Namespace) -> list[Row]:
    """All figures of one server."""
    options = ["--threads", "1"]
    async with launch(
        arguments.bundle,
        max_batch=SLOTS,
        max_seq_len=CONTEXT,
        max_files=MAX_FILES,
        options=options,
    ) as server:
        alone = await worst_gap(server, lambda: asyncio.sleep(arguments.seconds))
        stated = await worst_gap(server, lambda: ordinary_load(server, arguments.seconds))
        await _rested(server)
        print(f"worst gap alone {_ms(alone)}, beside ordinary neighbours {_ms(stated)}", flush=True)
        _print("attack", "outcome", "body", "CPU ms", "peak MB", "x body", "worst gap ms", "held")
        rows = []
        for attack in attacks(arguments.seconds, arguments.silent, arguments.size):
            if arguments.only in attack.name:
                rows.append(await measure(server, attack, alone, stated))
                _show(rows[-1], attack)
        return rows


def _show(row: Row, attack: Attack) -> None:
    outcome = ", ".join(f"{count} x {what}" for what, count in Counter(row.outcome).most_common())
    body = f"{row.body_bytes / 2**20:.2f}" if row.body_bytes else "-"
    times = row.memory_bytes / (row.body_bytes * attack.requests) if row.body_bytes else 0
    cpu_ms, memory_mb = f"{1000 * row.cpu_s:.0f}", f"{row.memory_bytes / 2**20:.0f}"
    factor = f"{times:.1f}" if row.body_bytes else "-"
    held = "yes" if row.held else ", ".join(row.not_held)
    _print(row.name, outcome, body, cpu_ms, memory_mb, factor, _ms(row.gap), held)


def _print(name: str, outcome: str, *figures: str) -> None:
    print("|".join(("", name, outcome, *figures, "")), flush=True)


def _ms(gap: Gap) -> str:
    return f"{1000 * gap.work_s:.0f} (+{1000 * gap.waited_s:.0f} waiting)"


def main() -> int:
    """Print the table; 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="with Tekken, so that tools and chats work")
    parser.add_argument("--seconds", type=float, default=6.0, help="that waiting attacks last")
    parser.add_argument("--silent", type=int, default=300, help="connections that say nothing")
    parser.add_argument("--size", type=float, default=1.0, help="scale of the bodies")
    parser.add_argument("--only", default="", help="attacks whose name has these words")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    rows = asyncio.run(run(arguments))
    if arguments.json:
        found = {"cpus": os.cpu_count(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
