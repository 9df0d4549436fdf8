"""Hours in minutes: many clients that come, hang up and are refused, and what they leave behind."""

import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from client import Answer, Client
from serving_process import ServerProcess, launch

CLIENTS, CANCELLED, SLOTS, QUEUE = 200, 0.3, 8, 48
_WARM_UP_S = 60.0
_SAMPLE_S = 2.0


async def soak(bundle: Path, seconds: float) -> list[dict[str, Any]]:
    """Load from more clients than there are places, with cancellations; the figures' fields."""
    async with launch(bundle, max_batch=SLOTS, max_seq_len=1024, max_queue=QUEUE) as server:
        await _load(server, min(_WARM_UP_S, seconds), seed=1)
        sizes: list[int] = []
        watching = asyncio.create_task(_watch(server, sizes))
        answers = await _load(server, seconds, seed=2)
        watching.cancel()
        outcomes = Counter(answer.outcome for answer in answers)
        left = await _left_behind(server)
        metrics = await server.metrics()
    edge = max(1, len(sizes) // 10)
    before, after = statistics.median(sizes[:edge]), statistics.median(sizes[-edge:])
    growth = after / before - 1
    details = {
        "clients": CLIENTS,
        "seconds": seconds,
        "outcomes": dict(outcomes),
        "ended": {k: v for k, v in metrics.items() if k.startswith("nemo_trt_requests_total")},
        "rss_bytes": [round(before), round(after), max(sizes)],
    }
    name = f"soak of {seconds / 60:g} minutes, {CLIENTS} clients:"
    return [
        {
            "name": f"{name} errors but 429 ({len(answers)} requests)",
            "target": "0",
            "measured": str(outcomes["error"]),
            "met": outcomes["error"] == 0 and outcomes["ok"] > 0,
            "details": details,
        },
        {
            "name": f"{name} requests left in slots and queue",
            "target": "0",
            "measured": f"{left:.0f}",
            "met": left == 0,
            "details": {},
        },
        {
            "name": f"{name} growth of memory after warm-up",
            "target": "<= 5 %",
            "measured": f"{100 * growth:.1f} %",
            "met": growth <= 0.05,
            "details": {},
        },
    ]


async def _load(server: ServerProcess, seconds: float, *, seed: int) -> list[Answer]:
    async with Client(server.url) as client:
        return await client.loop(_requests(seed), clients=CLIENTS, seconds=seconds)


def _requests(seed: int) -> Iterator[dict[str, Any]]:
    """Prompts that share a beginning, of many lengths; some are cut off in their answer."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(1000, 40_000, 24).tolist()
    while True:
        length = min(600, max(1, int(rng.lognormal(np.log(64), 0.8))))
        tokens = int(rng.integers(1, 49))
        cancelled = rng.random() < CANCELLED
        yield {
            "prompt": [*shared, *rng.integers(1000, 40_000, length).tolist()],
            "max_tokens": tokens,
            "cancel_after": int(rng.integers(1, tokens + 1)) if cancelled else None,
        }


async def _watch(server: ServerProcess, sizes: list[int]) -> None:
    begun = time.monotonic()
    while True:
        sizes.append(server.rss_bytes())
        if sys.stderr.isatty():
            line = f"\r{time.monotonic() - begun:5.0f} s {sizes[-1] / 1e6:.0f} MB"
            print(line, end="", file=sys.stderr, flush=True)
        await asyncio.sleep(_SAMPLE_S)


async def _left_behind(server: ServerProcess) -> float:
    """Requests that hold a slot or wait, once nobody asks any more; a step may still run."""
    for _ in range(100):
        found = await server.metrics()
        left = found["nemo_trt_requests_running"] + found["nemo_trt_requests_waiting"]
        if not left:
            break
        await asyncio.sleep(0.1)
    return left
