"""What serving over HTTP costs: against the bare Runner, one stream, the engine without HTTP.

python benchmarks/serving.py BUNDLE [--part NAME ...] [--rounds N] [--soak [MINUTES]] [--json FILE]

Every figure but start-up is a ratio or difference of measurements that take turns in one run.
Prompts are new in every round: no cache helps. The server is a process of its own.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from client import Answer, Client
from serving_process import ServerProcess, launch
from serving_soak import soak

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.serve import AsyncEngine

STREAMS, PROMPT = 8, 32


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table. `target` says in words what `met` has tested."""

    name: str
    target: str
    measured: str
    met: bool | None
    details: dict[str, Any]


class Bench:
    """The server, a Runner of the same bundle in this process, and prompts for both."""

    def __init__(self, server: ServerProcess, bundle: Path, rounds: int, answer: int) -> None:
        self.server, self.bundle, self.rounds, self.answer = server, bundle, rounds, answer
        self.random = np.random.default_rng(0)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Token ids that nobody has seen."""
        return self.random.integers(1000, 40_000, (count, length)).tolist()

    def client(self) -> Client:
        return Client(self.server.url)

    async def ask(self, client: Client, prompt: list[int], max_tokens: int) -> Answer:
        """One streamed answer of that many tokens."""
        answer = await client.ask(prompt, max_tokens)
        if answer.outcome != "ok" or answer.tokens != max_tokens:
            raise SystemExit(f"a request failed: {answer.error or answer}")
        return answer


async def throughput(bench: Bench) -> list[Figure]:
    """Eight streams over HTTP, the Runner's eight rows, and one stream, in turn."""
    rates: dict[str, list[float]] = {"runner": [], "http 8": [], "http 1": []}
    answer, params = bench.answer, SamplingParams(max_tokens=bench.answer, ignore_eos=True)
    with Runner.open(bench.bundle, max_batch=STREAMS, max_seq_len=1024) as runner:
        async with bench.client() as client:

            async def over_http(prompts: list[list[int]]) -> None:
                await asyncio.gather(*(bench.ask(client, one, answer) for one in prompts))

            for _ in range(bench.rounds + 1):
                prompts = bench.prompts(STREAMS, PROMPT)
                start = time.perf_counter()
                count = sum(1 for _ in runner.generate(prompts, params))
                rates["runner"].append(count / (time.perf_counter() - start))
                start = time.perf_counter()
                await over_http(prompts)
                rates["http 8"].append(STREAMS * answer / (time.perf_counter() - start))
                start = time.perf_counter()
                await over_http(bench.prompts(1, PROMPT))
                rates["http 1"].append(answer / (time.perf_counter() - start))
    kept = [a / b for a, b in zip(rates["http 8"], rates["runner"], strict=True)][1:]
    gained = [a / b for a, b in zip(rates["http 8"], rates["http 1"], strict=True)][1:]
    details = {"tokens_per_s": {name: found[1:] for name, found in rates.items()}}
    return [
        _figure(
            "8 streams over HTTP / Runner's 8 rows", ">= 0.92", statistics.median(kept), 0.92,
            {**details, "rounds": kept},
        ),
        _figure(
            "8 streams / 1 stream, tokens/s", ">= 2.5", statistics.median(gained), 2.5,
            {"rounds": gained},
        ),
    ]  # fmt: skip


async def first_token(bench: Bench) -> list[Figure]:
    """The same prompt through an engine in this process and over HTTP, in turn."""
    direct, http = [], []
    async with (
        AsyncEngine.open(bench.bundle, max_batch=STREAMS, max_seq_len=1024) as engine,
        bench.client() as client,
    ):
        for number in range(8 * bench.rounds + 2):
            (prompt,) = bench.prompts(1, 8)
            start = time.perf_counter()
            found = None
            async for _ in engine.generate(prompt, SamplingParams(max_tokens=1)):
                found = found or time.perf_counter() - start
            record = await bench.ask(client, prompt, 1)
            if number >= 2 and found is not None:
                direct.append(1000 * found)
                http.append(1000 * record.ttft_s)
    added = statistics.median(b - a for a, b in zip(direct, http, strict=True))
    return [
        Figure(
            name="TTFT added by HTTP, p50 of pairs",
            target="<= 10 ms",
            measured=f"{added:.1f} ms",
            met=added <= 10,
            details={
                "direct_p50_ms": statistics.median(direct),
                "http_p50_ms": statistics.median(http),
                "pairs": len(direct),
            },
        )
    ]


async def gaps(bench: Bench) -> list[Figure]:
    """A running stream's longest gap, alone and while a long prompt is admitted."""
    chunk, long = bench.server.prefill_tokens, bench.server.max_seq_len - 8
    alone, beside, chunk_s, whole = [], [], [], []
    async with bench.client() as client:
        for number in range(bench.rounds + 1):
            before = await bench.ask(client, bench.prompts(1, PROMPT)[0], bench.answer)
            one = await bench.ask(client, bench.prompts(1, chunk)[0], 1)
            running = asyncio.create_task(
                bench.ask(client, bench.prompts(1, PROMPT)[0], 2 * bench.answer)
            )
            await asyncio.sleep(before.tpot_s * 4 + before.ttft_s)
            admitted = await bench.ask(client, bench.prompts(1, long)[0], 1)
            during = await running
            if number:
                alone.append(max(before.gaps_s))
                beside.append(max(during.gaps_s))
                chunk_s.append(one.ttft_s + before.tpot_s)
                whole.append(admitted.ttft_s)
    ratio = statistics.median(a / b for a, b in zip(beside, chunk_s, strict=True))
    return [
        Figure(
            name=f"longest gap beside a prompt of {long} / a step of {chunk} prompt tokens",
            target="<= 1.5",
            measured=f"{ratio:.2f}",
            met=ratio <= 1.5,
            details={
                "gap_alone_ms": 1000 * statistics.median(alone),
                "gap_beside_ms": 1000 * statistics.median(beside),
                "chunk_and_token_ms": 1000 * statistics.median(chunk_s),
                "long_prompt_ms": 1000 * statistics.median(whole),
            },
        )
    ]


async def start_up(bundle: Path) -> list[Figure]:
    """From the process's start until /health/ready says 200; files are in the page cache."""
    times, own = [], []
    for _ in range(3):
        async with launch(bundle) as server:
            times.append(server.ready_s)
            own.append(server.own_ready_s)
    found = statistics.median(times)
    return [
        Figure(
            name="start of the process to ready",
            target="<= 5 s",
            measured=f"{found:.2f} s",
            met=found <= 5,
            details={"all_s": times, "says_itself_s": own},
        )
    ]


PARTS: dict[str, Callable[[Bench], Coroutine[Any, Any, list[Figure]]]] = {
    "throughput": throughput,
    "first-token": first_token,
    "gaps": gaps,
}


async def measure(arguments: argparse.Namespace) -> list[Figure]:
    figures: list[Figure] = []
    chosen = arguments.part or ["start-up", *PARTS]

    def add(found: list[Figure]) -> None:
        for figure in found:
            print(_line(figure), flush=True)
        figures.extend(found)

    if "start-up" in chosen:
        add(await start_up(arguments.bundle))
    parts = [PARTS[name] for name in chosen if name in PARTS]
    if parts:
        async with launch(arguments.bundle) as server:
            bench = Bench(server, arguments.bundle, arguments.rounds, arguments.answer)
            for part in parts:
                add(await part(bench))
    if arguments.soak:
        found = await soak(arguments.bundle, 60 * arguments.soak)
        add([Figure(**one) for one in found])
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--part", action="append", choices=["start-up", *PARTS, "none"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--soak", type=float, nargs="?", const=5.0, metavar="MINUTES")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{'figure':72} {'target':>10} {'measured':>10}  met")
    figures = asyncio.run(measure(arguments))
    busy = [round(load, 1), round(os.getloadavg()[0], 1)]
    print(f"load average before and after, {os.cpu_count()} cores: {busy[0]}, {busy[1]}")
    if arguments.json:
        report = {"load_average": busy, "figures": [asdict(figure) for figure in figures]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(figure.met is not False for figure in figures) else 1


def _figure(name: str, target: str, value: float, least: float, details: dict[str, Any]) -> Figure:
    return Figure(
        name=name, target=target, measured=f"{value:.3f}", met=value >= least, details=details
    )


def _line(figure: Figure) -> str:
    met = {True: "yes", False: "NO", None: ""}[figure.met]
    return f"{figure.name:72} {figure.target:>10} {figure.measured:>10}  {met}"


if __name__ == "__main__":
    sys.exit(main())
