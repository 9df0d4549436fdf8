"""Measures a bundle where it runs: load, prefill, decode, memory, and the lower bound of a step."""

import os
import resource
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nemo_trt.bundle import Bundle
from nemo_trt.defaults import DECODE_LENGTHS, DECODE_STEPS, PREFILL_LENGTHS
from nemo_trt.errors import RequestError
from nemo_trt.progress import Progress, Silent
from nemo_trt.where import CPU, Where

from .machine import gpus
from .open import open_session
from .planned import step_bytes
from .rates import Rate, batches_up_to, decode_rates, prefill_rates
from .session import Session, SessionInfo
from .targets import Target, target_named
from .trt.engine_record import EngineRecord, read_record

_COPY_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What `measure` found. Rates are medians.

    Attributes:
        runs_on: the backend and device.
        compute_precision: precision of the arithmetic.
        threads: ONNX Runtime's compute threads; None means one per physical core.
        load_s: seconds to open the session, with weights in the page cache or on disk.
        prefill: one rate per prompt length.
        decode: one rate per cache length and number of rows.
        weight_bytes_per_step: bytes of weights that a decode step reads from memory.
        kv_bytes_per_token: bytes in the cache per token of a row.
        bandwidth_bytes_per_s: memory bandwidth; None if unknown.
        bandwidth_source: where the bandwidth figure comes from.
        peak_rss_bytes: peak resident memory of this process.
        skipped_prefill, skipped_decode: lengths that would have exceeded the context.
    """

    runs_on: SessionInfo
    compute_precision: str
    threads: int | None
    load_s: float
    prefill: tuple[Rate, ...]
    decode: tuple[Rate, ...]
    weight_bytes_per_step: int
    kv_bytes_per_token: int
    bandwidth_bytes_per_s: float | None
    bandwidth_source: str
    peak_rss_bytes: int
    skipped_prefill: tuple[int, ...] = ()
    skipped_decode: tuple[int, ...] = ()


def measure(
    bundle: Bundle | Path,
    where: Where | str = CPU,
    *,
    prefill_lengths: Sequence[int] = PREFILL_LENGTHS,
    decode_lengths: Sequence[int] = DECODE_LENGTHS,
    num_decode_steps: int = DECODE_STEPS,
    max_batch: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure a bundle with seeded random tokens.

    A length that would exceed the context is skipped, and said to be.

    Args:
        bundle: an open bundle, or its folder.
        where: "cpu", "cuda", or the name of one of the bundle's engines.
        prefill_lengths: prompt lengths to measure, in tokens.
        decode_lengths: tokens in each row's cache before decoding, one measurement each.
        num_decode_steps: steps timed per measurement.
        max_batch: decode with 1, 2, 4, ... rows, up to this many; by default 1, or for an engine
            all the rows it was built for.
        threads: compute threads; CPU only.
        progress: receives progress updates; silent by default.

    Raises:
        BundleError, BuildError, MachineError: see `open_session`.
        RequestError: every prefill length, or every decode length, exceeds the context.
    """
    progress = progress or Silent()
    bundle, where = Bundle.open(bundle), Where.of(where)
    record = read_record(bundle, where.engine, verify=False) if where.kind == "engine" else None
    bandwidth, source = _bandwidth(where, threads, progress)
    limit = bundle.config.max_position_embeddings
    if record:
        limit = min(limit, record.options.max_seq_len)
    lengths, cached = within(limit, prefill_lengths, decode_lengths, num_decode_steps)
    # CUDA allocates the cache whole: no more than is used.
    longest = max(*lengths, *(length + num_decode_steps for length in cached))
    progress.phase("load")
    start = time.perf_counter()
    with open_session(
        bundle,
        where,
        max_batch=None if where.kind == "engine" else max_batch,
        max_seq_len=longest if where.kind == "cuda" else None,
        threads=threads,
    ) as session:
        load_s = time.perf_counter() - start
        rows = min(max_batch or session.max_batch, session.max_batch)
        prefill = prefill_rates(session, lengths, progress)
        decode = decode_rates(session, batches_up_to(rows), cached, num_decode_steps, progress)
        weights, token = _bytes_read(session, record)
        return Measurement(
            runs_on=session.describe(),
            compute_precision=session.compute_precision,
            threads=threads,
            load_s=load_s,
            prefill=tuple(prefill),
            decode=tuple(
                replace(one, floor_s=(weights + one.rows * one.tokens * token) / bandwidth)
                if bandwidth
                else one
                for one in decode
            ),
            weight_bytes_per_step=weights,
            kv_bytes_per_token=token,
            bandwidth_bytes_per_s=bandwidth,
            bandwidth_source=source,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            skipped_prefill=tuple(one for one in prefill_lengths if one not in lengths),
            skipped_decode=tuple(one for one in decode_lengths if one not in cached),
        )


def within(
    limit: int, prefill: Sequence[int], decode: Sequence[int], num_decode_steps: int
) -> tuple[list[int], list[int]]:
    """The lengths that end within a context of `limit` tokens.

    Raises:
        RequestError: no prefill length, or no decode length, does.
    """
    lengths = [length for length in prefill if length <= limit]
    cached = [length for length in decode if length + num_decode_steps <= limit]
    if not lengths or not cached:
        raise RequestError(
            f"Lengths to measure must end within the context of {limit} tokens, got prefill "
            f"{list(prefill)} and decode {list(decode)} with {num_decode_steps} steps. Name "
            "shorter ones."
        )
    return lengths, cached


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


def gpu_here() -> Target | None:
    """This machine's first GPU, by its own name; None without one, and if the table lacks it."""
    if not (present := gpus()):
        return None
    try:
        return target_named(present[0].name)
    except RequestError:
        return None


def _bandwidth(where: Where, threads: int | None, progress: Progress) -> tuple[float | None, str]:
    """Bytes a second of the memory that weights and cache lie in, and where that comes from."""
    if where.kind != "cpu":
        if target := gpu_here():
            return target.bandwidth_gb_s * 1e9, f"data sheet of {target.name}: {target.source}"
        return None, "unknown: nvidia-smi names no GPU that is in the table"
    progress.phase("measure copy bandwidth")
    found = copy_bandwidth(threads or os.cpu_count() or 1)
    return found, "measured here: copies, bytes read plus bytes written"


def _bytes_read(session: Session, record: EngineRecord | None) -> tuple[int, int]:
    """Weights that a decode step reads, and a row's cached bytes a token, as they lie in memory."""
    bundle = session.bundle
    if record:
        return step_bytes(bundle), record.kv_bytes_per_token(bundle.config)
    itemsize = bundle.precision.base.itemsize  # on CUDA, FP8 weights lie in the base dtype
    if session.where.kind == "cpu":
        itemsize = 2 if session.compute_precision == "fp16" else 4
    config = bundle.config
    return (
        config.num_parameters_per_step * itemsize,
        2 * config.num_layers * config.kv_size * itemsize,
    )
