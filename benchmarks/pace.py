"""Scheduler, engine and server at a GPU's pace: over a session that takes its time and no CPU.

python benchmarks/pace.py [--streams N] [--step-ms MS | --target NAME] [--temperature T]
    [--top-p P] [--page TOKENS] [--http [--front-ends N ...]] [--json FILE]

Streams run side by side; once each has its first token, tokens and CPU time are counted for
`--seconds`. The ideal is what the steps allow if the host took no time: a token of each stream a
step. CPU time is the kernel's; over HTTP the server is a process of its own, or several: then the
engine's is a figure, too, and so is the client's. With several numbers of front ends, each is
measured in turn.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from paced_session import Pace, PacedSession

from nemo_trt.bundle import Bundle
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.targets import target_named
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.serve import AsyncEngine, ServeOptions, create_app
from nemo_trt.serve.http.server import serve_forever
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.serve.processes import serve_by_front_ends
from nemo_trt.where import CPU

PROMPT_TOKENS = 32
MAX_SEQ_LEN = 65536


@dataclass(slots=True)
class Streams:
    """When each token of each stream came, in seconds of `time.perf_counter`."""

    started: list[float] = field(default_factory=list)
    tokens: list[list[float]] = field(default_factory=list)

    def add(self) -> list[float]:
        """A stream begins; append its tokens' times."""
        self.started.append(time.perf_counter())
        self.tokens.append([])
        return self.tokens[-1]

    def all_answer(self, count: int) -> bool:
        """Whether each of so many streams has had a token."""
        return len(self.tokens) == count and all(self.tokens)

    def between(self, start: float, end: float) -> int:
        """Tokens that came in that time."""
        return sum(start <= at < end for stream in self.tokens for at in stream)

    def figures(self, start: float, end: float) -> dict[str, float]:
        """Time to first token, and between tokens in that time, in ms."""
        first = [tokens[0] - began for began, tokens in zip(self.started, self.tokens, strict=True)]
        gaps = sorted(
            after - before
            for tokens in self.tokens
            for before, after in pairwise(tokens)
            if start <= before and after < end
        )
        return {
            "ttft_p50_ms": 1000 * statistics.median(first),
            "between_p50_ms": 1000 * gaps[len(gaps) // 2] if gaps else 0.0,
            "between_p99_ms": 1000 * gaps[int(0.99 * len(gaps))] if gaps else 0.0,
        }


def main() -> None:
    arguments = parsed()
    with ExitStack() as stack:
        folder = arguments.bundle
        if folder is None:
            folder = make_bundle(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        if arguments.serve:
            serve(folder, arguments)
            return
        runs = []
        for count in arguments.streams:
            for front_ends in arguments.front_ends if arguments.http else [0]:
                found = (
                    over_http(folder, arguments, count, front_ends)
                    if arguments.http
                    else in_process(folder, arguments, count)
                )
                runs.append(asyncio.run(found))
                print(shown(runs[-1]), file=sys.stderr)
    print(table(runs))
    if arguments.json:
        result = runs[0] if len(runs) == 1 else {"runs": runs}
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[64])
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--step-ms", type=float, default=8.0)
    pace.add_argument("--target", help="a GPU that serves Mistral-NeMo: its least time of a step")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--http", action="store_true", help="streamed, from a server process")
    parser.add_argument("--front-ends", type=int, nargs="+", default=[0], help="0: one process")
    parser.add_argument("--page", type=int, default=0, help="tokens of a page; 0: rows")
    parser.add_argument("--seconds", type=float, default=3.0, help="to measure")
    parser.add_argument("--bundle", type=Path, help="with a tokenizer; by default one is made")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_bundle(folder: Path) -> Path:
    """Two seeded layers over the real Tekken: the session reads nothing but its sizes."""
    from nemo_trt.export.bundle import export_bundle
    from nemo_trt.export.samples import SHAPES, write_seeded
    from nemo_trt.precision import DType

    write_seeded(folder / "checkpoint", SHAPES["nemo-tiny"])
    export_bundle(folder / "checkpoint", folder / "bundle", precision=DType.FP32)
    return folder / "bundle"


def pace_of(arguments: argparse.Namespace) -> Pace:
    target = target_named(arguments.target) if arguments.target else None
    return Pace(step_ms=arguments.step_ms, target=target)


def paced_runner(folder: Path, arguments: argparse.Namespace, count: int) -> Runner:
    bundle = Bundle.open(folder)
    session = PacedSession(
        bundle,
        pace_of(arguments),
        max_batch=count,
        max_seq_len=MAX_SEQ_LEN,
        temperature=arguments.temperature,
        page_tokens=arguments.page or None,
        num_pages=-(-MAX_SEQ_LEN // arguments.page) * 4 if arguments.page else 0,
    )
    if bundle.tokenizer_folder is None:
        raise SystemExit(f"{folder} must hold a tokenizer.")
    return Runner(session, open_tokenizer(bundle.tokenizer_folder))


def prompt_of(index: int) -> list[int]:
    """Every stream has a prompt of its own: no cache helps."""
    return [1000 + (7919 * index + token) % 50_000 for token in range(PROMPT_TOKENS)]


async def in_process(
    folder: Path, arguments: argparse.Namespace, count: int
) -> dict[str, float | str]:
    """Streams of an `AsyncEngine` of this process."""
    streams, runner = Streams(), paced_runner(folder, arguments, count)
    async with AsyncEngine(runner, max_queue=count) as engine:

        async def stream(index: int) -> None:
            params = SamplingParams(
                max_tokens=MAX_SEQ_LEN,
                temperature=arguments.temperature,
                top_p=arguments.top_p,
                seed=index,
                ignore_eos=True,
            )
            tokens = streams.add()
            async with engine.generate(prompt_of(index), params, speculate=False) as answer:
                async for _ in answer:
                    tokens.append(time.perf_counter())

        tasks = [asyncio.create_task(stream(index)) for index in range(count)]
        await answering(streams, count, tasks)
        clock = time.pthread_getcpuclockid(engine._thread.ident or 0)
        own, thread = time.process_time(), time.clock_gettime(clock)
        start = time.perf_counter()
        await asyncio.sleep(arguments.seconds)
        end = time.perf_counter()
        own, thread = time.process_time() - own, time.clock_gettime(clock) - thread
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    found = result(arguments, streams, count, start, end, own)
    return found | {"engine_thread_us_per_token": 1e6 * thread / streams.between(start, end)}


async def over_http(
    folder: Path, arguments: argparse.Namespace, count: int, front_ends: int
) -> dict[str, float | str]:
    """Streamed completions of a server process; the client reads bytes and parses nothing."""
    command = [sys.executable, __file__, "--serve", "--bundle", str(folder)]
    command += ["--temperature", str(arguments.temperature)]
    command += ["--page", str(arguments.page), "--front-ends", str(front_ends)]
    command += ["--streams", str(count), "--step-ms", str(arguments.step_ms)]
    if arguments.target:
        command = [*command[:-2], "--target", arguments.target]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[-1] or 0)
        if not port:
            raise SystemExit("the server did not start")
        streams = Streams()
        tasks = [
            asyncio.create_task(read_stream(port, index, arguments, streams))
            for index in range(count)
        ]
        await answering(streams, count, tasks)
        parts = [process.pid, *children(process.pid)]
        engine, server, own = cpu_s(process.pid), sum(map(cpu_s, parts)), time.process_time()
        start = time.perf_counter()
        await asyncio.sleep(arguments.seconds)
        end = time.perf_counter()
        engine = cpu_s(process.pid) - engine
        server, own = sum(map(cpu_s, parts)) - server, time.process_time() - own
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        process.terminate()
        process.wait()
    tokens = streams.between(start, end)
    return {
        **result(arguments, streams, count, start, end, server),
        "front_ends": front_ends,
        "engine_us_per_token": 1e6 * engine / tokens,
        "client_us_per_token": 1e6 * own / tokens,
    }


async def read_stream(
    port: int, index: int, arguments: argparse.Namespace, streams: Streams
) -> None:
    body = json.dumps(
        {
            "prompt": prompt_of(index),
            "max_tokens": MAX_SEQ_LEN - PROMPT_TOKENS,
            "stream": True,
            "ignore_eos": True,
            "speculate": False,
            "temperature": arguments.temperature,
            "top_p": arguments.top_p,
            "seed": index,
        }
    ).encode()
    tokens = streams.add()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: pace\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"the server answered {status!r}: {await reader.read(2000)!r}")
        while data := await reader.read(65536):
            now = time.perf_counter()
            tokens.extend([now] * data.count(b"data: "))
    finally:
        writer.close()


async def answering(streams: Streams, count: int, tasks: "list[asyncio.Task[None]]") -> None:
    """Wait until each stream has a token."""
    while not streams.all_answer(count):
        for task in tasks:
            if task.done():
                task.result()
                raise SystemExit("a stream ended before it was measured")
        await asyncio.sleep(0.01)


def result(
    arguments: argparse.Namespace,
    streams: Streams,
    count: int,
    start: float,
    end: float,
    cpu: float,
) -> dict[str, float | str]:
    num_tokens = streams.between(start, end)
    held = [PROMPT_TOKENS + streams.between(0, (start + end) / 2) / count] * count
    rate = num_tokens / (end - start)
    step_s = pace_of(arguments).seconds(int(sum(held)))
    return {
        "streams": count,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "over": "HTTP" if arguments.http else "AsyncEngine",
        "step_ms": 1000 * step_s,
        "tokens_per_s": rate,
        "share_of_ideal": rate * step_s / count,
        "cpu_us_per_token": 1e6 * cpu / num_tokens,
        **streams.figures(start, end),
    }


def cpu_s(pid: int) -> float:
    """CPU time of a process and its children that ended, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Processes that one has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def serve(folder: Path, arguments: argparse.Namespace) -> None:
    """Serve the paced session until SIGTERM; the address goes to standard output."""
    count = arguments.streams[0]
    options = ServeOptions(model_name="pace", allow_unvalidated=True, max_queue=count)
    runner, address = paced_runner(folder, arguments, count), {"host": "127.0.0.1", "port": 0}

    def on_ready(address: str) -> None:
        print(address, flush=True)

    if front_ends := arguments.front_ends[0]:
        serve_by_front_ends(
            Lifetime.begin(runner, CPU, options),
            front_ends=front_ends,
            **address,
            drain_timeout_s=0,
            on_ready=on_ready,
        )
    else:
        app = create_app(runner, options=options)
        serve_forever(app, **address, drain_timeout_s=0, on_ready=on_ready)


def shown(run: dict[str, float | str]) -> str:
    return ", ".join(
        f"{name} {value if isinstance(value, str) else f'{value:.4g}'}"
        for name, value in run.items()
    )


def table(runs: list[dict[str, float | str]]) -> str:
    """Markdown."""
    columns = list(runs[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---:|" * len(columns)]
    for run in runs:
        cells = [v if isinstance(v, str) else f"{v:.4g}" for v in run.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
