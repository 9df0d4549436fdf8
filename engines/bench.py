"""Measures a bundle on this machine: load, prefill, decode, memory, and the share of the floor."""

import contextlib
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_trt.bundle import Bundle
from nemo_trt.errors import RequestError
from nemo_trt.progress import Progress, Silent
from nemo_trt.where import CPU, Where

from .open import open_session

_COPY_BYTES = 256 * 2**20
_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured. Rates are medians over rounds.

    Attributes:
        load_s: opening the session, weights read from the page cache or disk.
        prefill_tokens_per_s: prompt length -> rate of one whole prefill.
        time_to_first_token_s: prompt length -> prefill up to its logits.
        decode_tokens_per_s: tokens already cached -> rate at batch 1.
        peak_rss_bytes: of this process.
        weight_bytes_per_token: weights that one decode step reads, as they lie in memory.
        kv_bytes_per_token: cached bytes a token.
        copy_bytes_per_s: of this machine, all threads, bytes read plus bytes written.
        bandwidth_share: bytes that decode moves a second over `copy_bytes_per_s`, at the first
            decode length.
        threads: given to ONNX Runtime; None leaves it to take one per physical core.
    """

    load_s: float
    prefill_tokens_per_s: dict[int, float]
    time_to_first_token_s: dict[int, float]
    decode_tokens_per_s: dict[int, float]
    peak_rss_bytes: int
    weight_bytes_per_token: int
    kv_bytes_per_token: int
    copy_bytes_per_s: float
    bandwidth_share: float
    compute_precision: str
    threads: int | None


def measure(
    bundle: Bundle | Path,
    *,
    prefill_lengths: Sequence[int] = (128, 1024),
    decode_lengths: Sequence[int] = (128, 1920),
    num_decode_steps: int = 32,
    threads: int | None = None,
    where: Where = CPU,
    progress: Progress | None = None,
) -> Figures:
    """Measure a bundle on ONNX Runtime, with seeded random tokens.

    On CUDA the copy bandwidth stays that of the host, and the share of it is 0: benchmarks/gpu.py
    measures a GPU's own.

    Raises:
        BundleError: the bundle is damaged.
        RequestError: a length goes past the model's context.
    """
    progress = progress or Silent()
    bundle = Bundle.open(bundle)
    limit = bundle.config.max_position_embeddings
    longest = max(*prefill_lengths, *(length + num_decode_steps for length in decode_lengths))
    if longest > limit:
        raise RequestError(
            f"Lengths must end within the model's context of {limit} tokens, got {longest}. "
            "Measure shorter ones."
        )
    progress.phase("measure copy bandwidth")
    bandwidth = copy_bandwidth(threads or os.cpu_count() or 1)
    progress.phase("load")
    start = time.perf_counter()
    session = open_session(
        bundle, where, threads=threads, max_seq_len=longest if where.kind == "cuda" else None
    )
    load_s = time.perf_counter() - start
    with contextlib.closing(session):
        rng = np.random.default_rng(0)

        def step(length: int, first: int) -> None:
            ids = rng.integers(0, session.config.vocab_size, (1, length))
            session.bind(first + length)
            session.step(ids, np.array([first]), np.array([[length - 1]]))

        first_token = {}
        progress.phase("prefill", len(prefill_lengths) * _ROUNDS)
        for length in prefill_lengths:
            step(length, 0)  # warm-up: buffers of this shape
            times = [_timed(lambda n=length: step(n, 0), progress) for _ in range(_ROUNDS)]  # type: ignore[misc]
            first_token[length] = statistics.median(times)
        decode = {}
        progress.phase("decode", len(decode_lengths) * num_decode_steps)
        for cached in decode_lengths:
            step(cached, 0)
            times = [
                _timed(lambda n=cached + i: step(1, n), progress)  # type: ignore[misc]
                for i in range(num_decode_steps)
            ]
            decode[cached] = 1 / statistics.median(times[1:])
        itemsize = 2 if where.kind == "cuda" or session.compute_precision == "fp16" else 4
        weight_bytes = session.config.num_parameters_per_step * itemsize
        kv_bytes = session.read_cache(0, "key", 0, 0, 1).size * itemsize
        kv_bytes *= 2 * session.config.num_layers
        shortest = min(decode)
        moved = (weight_bytes + kv_bytes * shortest) * decode[shortest]
        return Figures(
            load_s=load_s,
            prefill_tokens_per_s={n: n / seconds for n, seconds in first_token.items()},
            time_to_first_token_s=first_token,
            decode_tokens_per_s=decode,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            weight_bytes_per_token=weight_bytes,
            kv_bytes_per_token=kv_bytes,
            copy_bytes_per_s=bandwidth,
            bandwidth_share=0.0 if where.kind == "cuda" else moved / bandwidth,
            compute_precision=session.compute_precision,
            threads=threads,
        )


def copy_bandwidth(num_threads: int) -> float:
    """Bytes a second that this machine's memory copies, read plus written, all threads at once."""
    pairs = [(np.ones(_COPY_BYTES // 8), np.zeros(_COPY_BYTES // 8)) for _ in range(num_threads)]

    def copy(pair: int) -> None:
        np.copyto(pairs[pair][1], pairs[pair][0])  # releases the interpreter's lock

    times = []
    for _ in range(5):
        workers = [threading.Thread(target=copy, args=(i,)) for i in range(num_threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        times.append(time.perf_counter() - start)
    return 2 * _COPY_BYTES * num_threads / min(times)


def _timed(action: Callable[[], None], progress: Progress) -> float:
    start = time.perf_counter()
    action()
    elapsed = time.perf_counter() - start
    progress.advance()
    return elapsed
