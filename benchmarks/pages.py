"""What pages bring, computed: the real scheduler over a session that counts its steps' time.

python benchmarks/pages.py [--gpu NAME ...] [--requests N] [--max-seq-len N]

Mistral-NeMo in FP8 on a GPU; requests of ShareGPT's mean lengths (161 tokens of prompt, 338 of
answer; Kwon et al. 2023, section 6.1), exponentially distributed, all there from the start. A step
takes the time of reading what it must: the weights, and of the cache what attention reads (native:
the whole capacity of its rows; pages: the tokens they hold). 512 prompt tokens take as long as the
weights. Slower kernels, launches and the host are not counted: tokens a second are upper bounds.
"""

import argparse
from types import SimpleNamespace
from typing import Any

import numpy as np
from paced_session import PREFILL_TOKENS, PlannedNemo

from nemo_trt.engines.planned import CacheKind, step_bytes
from nemo_trt.engines.planner import engine_budget
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.session import Logits, PageView, Tokens
from nemo_trt.engines.step_result import WholeLogits
from nemo_trt.engines.targets import Target, target_named
from nemo_trt.serve import Request, Scheduler

PROMPT, ANSWER = 161, 338
PAGE = 64
ROWS = 256  # with pages: memory is not what limits them
VOCAB = 8


class Counted:
    """A session that counts the seconds of its steps. Every answer is token 0."""

    prefill_chunk, overlaps = None, False
    config: Any = SimpleNamespace(vocab_size=VOCAB, eos_token_ids=())

    def __init__(self, target: Target, length: int, *, paged: bool, kv_cache: CacheKind) -> None:
        nemo = PlannedNemo(target)
        self.max_seq_len, self._paged = length, paged
        self._bandwidth = target.bandwidth_gb_s * 1e9
        budget = engine_budget(nemo, target, max_seq_len=length, paged=paged, kv_cache=kv_cache)
        self._weights, self._token = step_bytes(nemo), budget.kv_token_bytes
        tokens = budget.cache_tokens
        self.max_batch = ROWS if paged else tokens // length
        self.page_tokens = PAGE if paged else None
        self.num_pages = tokens // PAGE if paged else 0
        self.seconds = 0.0

    def bind(self, capacity: int) -> None:
        """The cache is there."""

    def copy_cache(self, source: int, target: int, length: int) -> None:
        """Takes no time."""

    def copy_page(self, source: int, target: int) -> None:
        """Takes no time."""

    def step_cost(self, rows: int, new_tokens: int) -> float:
        """See `Session.step_cost`."""
        return 1.0

    def launch(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int = 0,
        temperatures: Logits | None = None,
        pages: PageView | None = None,
    ) -> None:
        """Count the step's time. See `Session.launch`."""
        rows, new_tokens = input_ids.shape
        read = int(pages.lengths.sum()) if pages else rows * self.max_seq_len
        prompts = rows * new_tokens / PREFILL_TOKENS if new_tokens > 1 else 0.0
        self.seconds += (self._weights * max(prompts, 1) + read * self._token) / self._bandwidth
        self._logits = np.zeros((*logit_indices.shape, VOCAB), np.float32)

    def collect(self) -> WholeLogits:
        """See `Session.collect`."""
        return WholeLogits(self._logits)


def served(session: Any, num_requests: int) -> tuple[float, float, int]:
    """Tokens a second, requests at once, and preemptions, until half of the requests are over."""
    dice = np.random.default_rng(0)
    scheduler = Scheduler(session, max_queue=num_requests)
    for _ in range(num_requests):
        prompt, answer = (1 + int(dice.exponential(mean)) for mean in (PROMPT, ANSWER))
        tokens = dice.integers(1, VOCAB, min(prompt, session.max_seq_len - 1)).tolist()
        params = SamplingParams(max_tokens=answer, temperature=0.0)
        scheduler.submit(Request(prompt=tokens, params=params, speculate=False))
    tokens = ended = preempted = 0
    running = seconds = 0.0
    while ended < num_requests // 2:
        for output in scheduler.step():
            tokens += output.event is not None
            if output.ended:
                ended += 1
                preempted += output.ended.usage.preemptions
        running += scheduler.num_running * (session.seconds - seconds)
        seconds = session.seconds
    return tokens / seconds, running / seconds, preempted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", nargs="+", default=["h100", "l40s", "rtx5090"])
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--max-seq-len", type=int, default=8192)
    arguments = parser.parse_args()
    print("| GPU | cache | tokens | requests at once | tokens/s | preemptions |")
    print("|---|---|---:|---:|---:|---:|")
    for name in arguments.gpu:
        for label, kinds in (
            ("rows, BF16", {"paged": False, "kv_cache": "base"}),
            ("pages, BF16", {"paged": True, "kv_cache": "base"}),
            ("pages, FP8", {"paged": True, "kv_cache": "fp8"}),
        ):
            session = Counted(target_named(name), arguments.max_seq_len, **kinds)
            rate, running, preempted = served(session, arguments.requests)
            room = session.num_pages * PAGE or session.max_batch * session.max_seq_len
            print(f"| {name} | {label} | {room:,} | {running:.0f} | {rate:,.0f} | {preempted} |")


if __name__ == "__main__":
    main()
