"""What Ray Serve costs a request: one replica behind it against the same server alone.

    python benchmarks/cluster.py BUNDLE
    python benchmarks/cluster.py BUNDLE --rounds 8 --requests 40 --output 128

Both servers run all the time, each with as many threads; rounds alternate between them, and each
figure is the median of what a round with Ray gave against the round without it beside it.
"""

import argparse
import asyncio
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from client import Answer, Client


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[str]:
    """`nemo-trt serve` on a free port; yields its address."""
    command = [sys.executable, "-m", "nemo_trt.cli.main", "serve", str(bundle), "--port", "0"]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen([*command, *options], stderr=log)
        try:
            text = ""
            while not (found := re.search(r"Ready after .* at (http://\S+?)\.\s", text)):
                time.sleep(0.2)
                text = Path(log.name).read_text()
                if process.poll() is not None:
                    raise SystemExit(text)
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


@dataclass(frozen=True, kw_only=True)
class Round:
    """Medians of one round, and its rate."""

    ttft_s: float
    tpot_s: float
    tokens_per_s: float


def measured(url: str, seed: int, given: argparse.Namespace, clients: int) -> Round:
    """One round, after an answer for each client that no figure contains."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1000, 40_000, (clients + given.requests, given.prompt)).tolist()
    requests = [{"prompt": prompt, "max_tokens": given.output} for prompt in prompts]

    async def run() -> tuple[list[Answer], float]:
        async with Client(url) as client:
            await client.loop(iter(requests[:clients]), clients=clients)
            start = time.perf_counter()
            found = await client.loop(iter(requests[clients:]), clients=clients)
            return found, time.perf_counter() - start

    answers, seconds = asyncio.run(run())
    assert all(answer.outcome == "ok" for answer in answers)
    return Round(
        ttft_s=statistics.median(answer.ttft_s for answer in answers),
        tpot_s=statistics.median(answer.tpot_s for answer in answers),
        tokens_per_s=sum(answer.tokens for answer in answers) / seconds,
    )


def main() -> None:
    """Print a line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--requests", type=int, default=4, help="a round; short rounds share what else goes on"
    )
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--output", type=int, default=48, help="tokens")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    given = parser.parse_args()
    size = ["--max-batch", "4", "--max-seq-len", "512", "--threads", "1", "--allow-unvalidated"]
    with (
        served(given.bundle, *size) as alone,
        served(given.bundle, *size, "--ray", "--replicas", "1") as behind,
    ):
        for clients in given.clients:
            added_ms, per_token_ms, rates = [], [], []
            for number in range(given.rounds):
                order = (alone, behind) if number % 2 else (behind, alone)
                found = {url: measured(url, number, given, clients) for url in order}
                without, with_ray = found[alone], found[behind]
                added_ms.append(1e3 * (with_ray.ttft_s - without.ttft_s))
                per_token_ms.append(1e3 * (with_ray.tpot_s - without.tpot_s))
                rates.append(with_ray.tokens_per_s / without.tokens_per_s)
                print(
                    f"{clients} clients: first token p50 {1e3 * without.ttft_s:.0f} ms alone, "
                    f"{1e3 * with_ray.ttft_s:.0f} ms behind Ray; tokens/s "
                    f"{without.tokens_per_s:.1f} and {with_ray.tokens_per_s:.1f}",
                    flush=True,
                )
            print(
                f"{clients} clients, median of {given.rounds}: first token "
                f"{statistics.median(added_ms):+.1f} ms, between tokens "
                f"{statistics.median(per_token_ms):+.1f} ms, tokens/s x "
                f"{statistics.median(rates):.3f} ({min(rates):.3f} to {max(rates):.3f})"
            )


if __name__ == "__main__":
    main()
