"""The scheduler against the bare Runner, and prompt-lookup drafts against none.

python benchmarks/scheduler.py BUNDLE [--json FILE]

Every figure is the ratio of two medians of one run, rounds in turn, on a bundle with a tokenizer.
Every prompt begins with a token of its own, so that no cache helps. Streams side by side are timed
whole, prompts included; a stream alone from its first token on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.serve import Request, Scheduler

STREAMS, PROMPT, ANSWER, ROUNDS = 8, 32, 48, 5
PARAMS = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
PASSAGE = (
    "The harbour master keeps a ledger of every ship that comes in: its name, its flag, the hour, "
    "the depth of water under its keel, and what it carries. On the fourth of May the barque "
    "Esperance of Nantes came in at half past six with barrels of olive oil, salted cod and cork. "
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    with Runner.open(arguments.bundle, max_batch=STREAMS, max_seq_len=1024) as runner:
        vocab_size = runner.config.vocab_size
        prompts = random.integers(0, vocab_size, (STREAMS, PROMPT)).tolist()
        scheduler = Scheduler(runner.session, runner.tokenizer)
        # Nothing matches: whatever stood in the answer before is made unlikely.
        wild = SamplingParams(
            max_tokens=ANSWER, temperature=1.0, seed=1, frequency_penalty=5.0, ignore_eos=True
        )
        unlike = random.integers(0, vocab_size, 256).tolist()
        text = f"{PASSAGE}\n\nThe same text again:\n\n{PASSAGE}\n\nThe same text again:\n\n"
        copied = runner.tokenizer.encode(text, bos=True)

        def fresh(prompt: list[int]) -> list[int]:
            return [int(random.integers(0, vocab_size)), *prompt]

        def bare() -> float:
            for row in range(STREAMS):
                runner.rewind(row)
            start = time.perf_counter()
            count = sum(1 for _ in runner.generate([fresh(prompt) for prompt in prompts], PARAMS))
            return count / (time.perf_counter() - start)

        def served(count: int, speculate: bool) -> Callable[[], float]:
            def run() -> float:
                start = time.perf_counter()
                for prompt in prompts[:count]:
                    scheduler.submit(
                        Request(prompt=fresh(prompt), params=PARAMS, speculate=speculate)
                    )
                return len(drain(scheduler)) / (time.perf_counter() - start)

            return run

        def alone(
            prompt: list[int], params: SamplingParams, speculate: bool
        ) -> Callable[[], float]:
            def run() -> float:
                scheduler.submit(Request(prompt=fresh(prompt), params=params, speculate=speculate))
                times = drain(scheduler)
                return (len(times) - 1) / (times[-1] - times[0])

            return run

        rates = measure(
            {
                "runner, 8 rows": bare,
                "scheduler, 8 streams": served(STREAMS, False),
                "scheduler, 8 streams, drafts": served(STREAMS, True),
                "scheduler, 1 stream": served(1, False),
                "repeated text": alone(copied, PARAMS, False),
                "repeated text, drafts": alone(copied, PARAMS, True),
                "nothing matches": alone(unlike, wild, False),
                "nothing matches, drafts": alone(unlike, wild, True),
            }
        )
    figures = {
        "tokens_per_s": rates,
        "scheduler / runner, 8 streams": rates["scheduler, 8 streams"] / rates["runner, 8 rows"],
        "8 streams / 1": rates["scheduler, 8 streams"] / rates["scheduler, 1 stream"],
        "drafts / none, 8 streams": rates["scheduler, 8 streams, drafts"]
        / rates["scheduler, 8 streams"],
        "drafts / none, repeated text": rates["repeated text, drafts"] / rates["repeated text"],
        "drafts / none, nothing matches": rates["nothing matches, drafts"]
        / rates["nothing matches"],
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


def drain(scheduler: Scheduler) -> list[float]:
    """When each token came, in seconds."""
    times: list[float] = []
    while not scheduler.idle:
        tokens = [output for output in scheduler.step() if output.event]
        times += [time.perf_counter()] * len(tokens)
    return times


def measure(cases: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Tokens a second: medians of rounds, the first left out, in which the cases take turns."""
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS + 1):
        for name, run in cases.items():
            rates[name].append(run())
    return {name: statistics.median(found[1:]) for name, found in rates.items()}


if __name__ == "__main__":
    main()
