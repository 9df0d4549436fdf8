"""What it costs a server to compare every byte of the weights with the verdict as it loads them.

Opens a judged bundle as `serve` does, with and without the comparison, in turns in one process, so
that both find the files in memory. CPU time counts all threads.

    python benchmarks/judged_load.py BUNDLE [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from nemo_trt.bundle import Bundle
from nemo_trt.engines.runner import Runner
from nemo_trt.serve.approval import open_judged
from nemo_trt.serve.options import ServeOptions
from nemo_trt.verdict import read_verdict


def timed(load: Callable[[], Runner]) -> tuple[float, float]:
    """Seconds on the clock and of the processors that a load takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    runner = load()
    found = time.perf_counter() - wall, time.process_time() - cpu
    runner.close()
    return found


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description="Measure what the comparison of weights costs.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()

    def plain() -> Runner:
        return Runner.open(Bundle.open(asked.bundle), max_batch=8, max_seq_len=1024)

    def judged() -> Runner:
        bundle = Bundle.open(asked.bundle)
        verdict = read_verdict(bundle)
        assert verdict.passed, verdict.words

        def opener() -> Runner:
            return Runner.open(bundle, max_batch=8, max_seq_len=1024)

        return open_judged(bundle, verdict, ServeOptions(), opener)[0]

    timed(plain)
    pairs = [(timed(plain), timed(judged)) for _ in range(asked.repeats)]
    for index, unit in enumerate(("clock", "processors")):
        without, with_it = (
            statistics.median(pair[which][index] for pair in pairs) for which in (0, 1)
        )
        ratio = statistics.median(pair[1][index] / pair[0][index] for pair in pairs)
        print(f"{unit}: {without:.2f} s without, {with_it:.2f} s with, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
