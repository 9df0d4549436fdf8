"""Bench: how fast the bundle is on ONNX Runtime, or the engine on its GPU, beside the floor."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nemo_trt.engines.planner import plan_engine
from nemo_trt.engines.session import Session
from nemo_trt.engines.targets import target_named
from nemo_trt.errors import RequestError
from nemo_trt.manifest import read_manifest
from nemo_trt.progress import Progress

from .done import Done
from .here import require_cpu_session, require_engine_gpu
from .rates import Rate, batches_up_to, decode_rates, prefill_rates

CPU_ROWS = 4


def run(
    *,
    bundle: str,
    engine: str | None,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    threads: int | None,
    progress: Progress,
) -> Done:
    """Measure the engine, or without one the bundle; lengths past the context are left out."""
    folder = Path(bundle)
    if engine:
        return _on_gpu(folder, engine, prefill, decode, decode_steps, progress)
    return _on_cpu(folder, prefill, decode, decode_steps, threads, progress)


def _on_cpu(
    folder: Path,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    threads: int | None,
    progress: Progress,
) -> Done:
    manifest = require_cpu_session(folder)
    from nemo_trt.engines.bench import copy_bandwidth
    from nemo_trt.engines.ort_session import OrtSession

    progress.phase("measure copy bandwidth")
    bandwidth = copy_bandwidth(threads or os.cpu_count() or 1)
    progress.phase("load the bundle")
    start = time.perf_counter()
    with OrtSession.open(folder, max_batch=CPU_ROWS, threads=threads) as session:
        load_s = time.perf_counter() - start
        rates = _rates(session, prefill, decode, decode_steps, progress)
        itemsize = 2 if session.compute_precision == "fp16" else 4
        config = manifest.config
        token_bytes = 2 * config.num_layers * config.kv_size * itemsize

        def floor_s(one: Rate) -> float:
            """All that a step reads, over the bandwidth."""
            weights = config.num_parameters_per_step * itemsize
            return (weights + one.rows * one.tokens * token_bytes) / bandwidth

        return Done(
            facts={
                "backend": session.describe(),
                "computes_in": session.compute_precision,
                "threads": threads,
                "load_s": load_s,
                "bandwidth_bytes_per_s": bandwidth,
                "bandwidth_source": "measured here: copies, bytes read plus bytes written",
                "prefill": [asdict(one) for one in rates[0]],
                "decode": [{**asdict(one), "floor_s": floor_s(one)} for one in rates[1]],
            }
        )


def _on_gpu(
    folder: Path,
    engine: str,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    progress: Progress,
) -> Done:
    gpu = require_engine_gpu(folder, engine)
    from nemo_trt.engines.trt.session import TensorRtSession

    progress.phase("load the engine")
    start = time.perf_counter()
    session = TensorRtSession.open(folder, engine)
    load_s = time.perf_counter() - start
    target = target_named(session.record.options.target)
    manifest = read_manifest(folder)
    try:
        rates = _rates(session, prefill, decode, decode_steps, progress)
        backend = session.describe()
    finally:
        session.close()

    def floor_s(one: Rate) -> float:
        budget = plan_engine(manifest, target, max_seq_len=one.tokens, max_batch=one.rows)
        return budget.floor_ms[1] / 1e3

    return Done(
        facts={
            "backend": backend,
            "computes_in": session.compute_precision,
            "gpu": gpu,
            "load_s": load_s,
            "bandwidth_bytes_per_s": target.bandwidth_gb_s * 10**9,
            "bandwidth_source": f"data sheet of {target.name}: {target.source}",
            "prefill": [asdict(one) for one in rates[0]],
            "decode": [{**asdict(one), "floor_s": floor_s(one)} for one in rates[1]],
        }
    )


def _rates(
    session: Session,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    progress: Progress,
) -> tuple[list[Rate], list[Rate]]:
    limit = min(session.max_seq_len, session.config.max_position_embeddings)
    lengths = [length for length in prefill if length <= limit]
    cached = [length for length in decode if length + decode_steps <= limit]
    if not lengths or not cached:
        raise RequestError(
            f"Lengths to measure must end within the context of {limit} tokens, got prefill "
            f"{list(prefill)} and decode {list(decode)} with {decode_steps} steps. Name shorter "
            "ones."
        )
    batches = batches_up_to(session.max_batch)
    return (
        prefill_rates(session, lengths, progress),
        decode_rates(session, batches, cached, decode_steps, progress),
    )
