"""Prefill and decode rates of any session, by prompt length and by rows."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_trt.progress import Progress

from .session import Session

_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One measured point, a median.

    Attributes:
        tokens: length of the prompt (prefill), or of each row's cache (decode).
        rows: number of rows that decode together; 1 for a prefill.
        step_s: seconds of the whole prefill, or of one decode step of all rows.
        tokens_per_s: tokens per second of all rows together.
        floor_s: lower bound of a decode step in seconds: bytes read over memory bandwidth; None for
            a prefill, and if the bandwidth is unknown.
    """

    tokens: int
    rows: int
    step_s: float
    tokens_per_s: float
    floor_s: float | None = None


def prefill_rates(session: Session, lengths: Sequence[int], progress: Progress) -> list[Rate]:
    """Each length as one whole prefill of one row, up to its logits."""
    progress.phase("prefill", len(lengths))
    rng = np.random.default_rng(0)
    found = []
    for length in lengths:
        session.bind(length)
        ids = rng.integers(0, session.config.vocab_size, (1, length))
        last = np.array([[length - 1]])
        times = [_seconds(session, ids, np.array([0]), last) for _ in range(1 + _ROUNDS)][1:]
        step_s = statistics.median(times)
        found.append(Rate(tokens=length, rows=1, step_s=step_s, tokens_per_s=length / step_s))
        progress.advance()
    return found


def decode_rates(
    session: Session, batches: Sequence[int], cached: Sequence[int], steps: int, progress: Progress
) -> list[Rate]:
    """Steps of one token a row, at each number of rows and each cached length.

    The cache holds what it holds: the time of a step does not depend on the numbers in it.
    """
    progress.phase("decode", len(batches) * len(cached))
    rng = np.random.default_rng(1)
    found = []
    for tokens in cached:
        session.bind(tokens + steps)
        for rows in batches:
            ids = rng.integers(0, session.config.vocab_size, (rows, 1))
            first = np.zeros((rows, 1), np.int64)
            times = [
                _seconds(session, ids, np.full(rows, tokens + step), first) for step in range(steps)
            ]
            step_s = statistics.median(times[2:] or times)  # the first ones warm up and capture
            found.append(Rate(tokens=tokens, rows=rows, step_s=step_s, tokens_per_s=rows / step_s))
            progress.advance()
    return found


def batches_up_to(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def _seconds(session: Session, ids: np.ndarray, indices: np.ndarray, logits: np.ndarray) -> float:
    start = time.perf_counter()
    session.step(ids, indices, logits)
    return time.perf_counter() - start
