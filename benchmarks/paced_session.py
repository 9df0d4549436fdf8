"""A session that takes a GPU's time and none of the processor's: its answers are prepared.

A step ends `step_s` after it was started, or after the session's last one ended: work queues up as
on one stream. Nothing is computed, so a process' CPU time is the host's share alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nemo_trt.bundle import Bundle
from nemo_trt.engines.base_session import BaseSession
from nemo_trt.engines.candidates import Candidates, top_candidates
from nemo_trt.engines.planned import kv_bytes_per_token, step_bytes
from nemo_trt.engines.session import CacheBlock, Logits, PageView, SessionInfo, Tokens
from nemo_trt.engines.step_result import At
from nemo_trt.engines.targets import Target
from nemo_trt.export.samples import SHAPES
from nemo_trt.precision import DType
from nemo_trt.where import CPU, Where

PREFILL_TOKENS = 512
"""Prompt tokens that take as long as a decode step."""
_DISTRIBUTIONS = 64
_PEAKS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a decode step takes: always the same, or as long as a GPU must read memory.

    Attributes:
        step_ms: of every step.
        target: a GPU that serves Mistral-NeMo in FP8, or BF16 where it has no FP8; `step_ms` is not
            read.
    """

    step_ms: float = 8.0
    target: Target | None = None

    def seconds(self, cached_tokens: int) -> float:
        """The time of a decode step over rows that hold so many tokens together."""
        if self.target is None:
            return self.step_ms / 1000
        nemo = PlannedNemo(self.target)
        read = step_bytes(nemo) + cached_tokens * kv_bytes_per_token(nemo)
        return read / (self.target.bandwidth_gb_s * 1e9)


class PlannedNemo:
    """Mistral-NeMo's sizes, for the planner's arithmetic."""

    def __init__(self, target: Target) -> None:
        self.config = SHAPES["nemo-12b"]
        self.precision = DType.FP8 if target.has_fp8 else DType.BF16
        self.kept_cache_layers = frozenset[int]()
        head_and_embedding = 2 * self.config.vocab_size * self.config.hidden_size
        others = self.config.num_parameters - head_and_embedding
        itemsize = self.precision.itemsize
        self.weight_bytes = others * itemsize + head_and_embedding * DType.BF16.itemsize


class _Prepared:
    """A `StepResult` whose candidates are prepared; whole rows are fetched on demand."""

    def __init__(self, logits: NDArray[np.float32], candidates: Candidates, start: int) -> None:
        self._logits, self._candidates, self._start = logits, candidates, start

    def logits(self, row: int, first: int, last: int) -> Logits:
        """See `StepResult.logits`. A fetch costs the host what its copy costs."""
        fetched = self._logits[(self._start + row) % _DISTRIBUTIONS].copy()
        return np.broadcast_to(fetched, (last - first, len(fetched)))

    def candidates(self, at: Sequence[At]) -> Candidates:
        """See `StepResult.candidates`."""
        return self._candidates.of(np.array([row for row, _ in at]) + self._start)


def waking_s() -> float:
    """How late a sleep of this machine ends at least, by the lower tenth of 50: no host's fault."""
    late = []
    for _ in range(50):
        end = time.perf_counter() + 0.002
        time.sleep(0.002)
        late.append(time.perf_counter() - end)
    return sorted(late)[5]


class PacedSession(BaseSession):
    """A `Session` whose logits are one of 64 prepared distributions: normal, with 20 peaks.

    Args:
        temperature: of every row; candidates are prepared for it.
        page_tokens, num_pages: of a cache in pages; by default it consists of rows.
    """

    where: Where = CPU
    overlaps = True
    tokens_per_read = 64
    longer = "Open the session with a larger max_seq_len."

    def __init__(
        self,
        bundle: Bundle,
        pace: Pace,
        *,
        max_batch: int,
        max_seq_len: int,
        temperature: float,
        page_tokens: int | None = None,
        num_pages: int = 0,
    ) -> None:
        super().__init__(
            bundle, max_batch=max_batch, max_seq_len=max_seq_len, compute_precision="fp32"
        )
        self.page_tokens, self.num_pages = page_tokens, num_pages
        self._pace, self._steps, self._free_at = pace, 0, 0.0
        random = np.random.default_rng(0)
        vocab_size = self.config.vocab_size
        rows = random.normal(0, 2, (_DISTRIBUTIONS, vocab_size)).astype(np.float32)
        for row in rows:
            row[random.integers(0, vocab_size, _PEAKS)] += random.normal(12, 2, _PEAKS)
        self._logits: NDArray[np.float32] = rows
        degrees = np.full(len(rows), temperature, np.float32)
        picked = top_candidates(rows, degrees)
        # Where they go on from the start again, so that no step has to turn around.
        around = np.arange(_DISTRIBUTIONS + max_batch) % _DISTRIBUTIONS
        self._candidates = replace(picked, ids=picked.ids.astype(np.int32)).of(around)
        self._ends, self._wakes_s = 0.0, waking_s()

    def launch(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int = 0,
        temperatures: Logits | None = None,
        pages: PageView | None = None,
    ) -> None:
        """See `Session.launch`. Row n of step s gets distribution (s + n) % 64."""
        self._ends = self._start(input_ids, write_indices)

    def collect(self) -> _Prepared:
        """See `Session.collect`."""
        time.sleep(max(0.0, self._ends - time.perf_counter() - self._wakes_s))
        while time.perf_counter() < self._ends:
            time.sleep(0)  # others may have the interpreter
        return _Prepared(self._logits, self._candidates, self._steps % _DISTRIBUTIONS)

    def _start(self, input_ids: Tokens, write_indices: Tokens) -> float:
        """Put a step behind what runs; return when it ends, in `time.perf_counter`'s seconds."""
        rows, new_tokens = input_ids.shape
        decode_s = self._pace.seconds(int(write_indices.sum()))
        prefill = rows * new_tokens / PREFILL_TOKENS if new_tokens > 1 else 0.0
        self._free_at = max(self._free_at, time.perf_counter()) + decode_s * max(1.0, prefill)
        self._steps += 1
        return self._free_at

    def copy_page(self, source: int, target: int) -> None:
        """See `Session.copy_page`. Nothing is copied."""

    def describe(self) -> SessionInfo:
        """See `Session.describe`."""
        return {"backend": "onnxruntime", "version": "paced"}

    def _grow(self, capacity: int) -> None:
        self.capacity = self.max_seq_len  # as an engine's cache has its size from the start

    def _read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        return np.zeros((self.config.num_kv_heads, stop - start, self.config.head_dim), np.float32)

    def _write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        pass
