"""One sampling step over Tekken's vocabulary, 131,072 float32 logits, in every mode.

python benchmarks/sampling.py [--json FILE]
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from nemo_trt.engines.sampling import Sampler, SamplingParams

VOCAB_SIZE = 131072
MODES = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=1.0, seed=0),
    "top-k 50": SamplingParams(temperature=1.0, top_k=50, seed=0),
    "top-p 0.9": SamplingParams(temperature=1.0, top_p=0.9, seed=0),
    "min-p 0.05": SamplingParams(temperature=1.0, min_p=0.05, seed=0),
    "all penalties, top-p 0.9": SamplingParams(
        temperature=0.7,
        top_p=0.9,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.2,
        logit_bias={5: 1.0},
        seed=0,
    ),
    "greedy, 20 logprobs": SamplingParams(logprobs=20),
    "top-k 50, top-p 0.9, 20 logprobs": SamplingParams(
        temperature=1.0, top_k=50, top_p=0.9, logprobs=20, seed=0
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    flat = rng.normal(0, 0.1, VOCAB_SIZE).astype(np.float32)
    peaked = rng.normal(0, 2, VOCAB_SIZE).astype(np.float32)
    peaked[rng.integers(0, VOCAB_SIZE, 20)] += 12
    prompt = rng.integers(0, VOCAB_SIZE, 2000).tolist()
    figures = {}
    print(f"{'mode':34} {'peaked ms':>10} {'flat ms':>10}")
    for mode, params in MODES.items():
        figures[mode] = {}
        for name, logits in (("peaked", peaked), ("flat", flat)):
            sampler = Sampler(params, VOCAB_SIZE, prompt)
            times = []
            for _ in range(60):
                start = time.perf_counter()
                sampler.sample(logits)
                times.append(time.perf_counter() - start)
            figures[mode][name] = 1000 * statistics.median(times)
        print(f"{mode:34} {figures[mode]['peaked']:10.2f} {figures[mode]['flat']:10.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
