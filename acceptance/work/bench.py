"""Bench: how fast the bundle is on ONNX Runtime, or the engine on its GPU, beside the floor."""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict

from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.engines.planner import plan_engine
from nemo_trt.engines.session import Session
from nemo_trt.engines.targets import Target, target_named
from nemo_trt.errors import RequestError
from nemo_trt.progress import Progress
from nemo_trt.where import CUDA

from .done import Done
from .here import require_cpu_session, require_cuda_session, require_engine_gpu
from .rates import Rate, batches_up_to, decode_rates, prefill_rates

ONNXRUNTIME_ROWS = 4


def run(
    *,
    bundle: str,
    engine: str | None,
    cuda_gpu: str | None,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    threads: int | None,
    progress: Progress,
) -> Done:
    """Measure the engine, or without one the bundle on ONNX Runtime; lengths past the context are
    left out.

    ONNX Runtime runs on the CPU, or with `cuda_gpu`, a target's name, on a GPU of its kind.
    """
    opened = Bundle.open(bundle)
    if engine:
        return _on_gpu(opened, engine, prefill, decode, decode_steps, progress)
    if cuda_gpu:
        return _on_cuda(opened, cuda_gpu, prefill, decode, decode_steps, progress)
    return _on_cpu(opened, prefill, decode, decode_steps, threads, progress)


def _on_cpu(
    bundle: Bundle,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    threads: int | None,
    progress: Progress,
) -> Done:
    require_cpu_session(bundle)
    from nemo_trt.engines.bench import copy_bandwidth
    from nemo_trt.engines.ort_session import OrtSession

    progress.phase("measure copy bandwidth")
    bandwidth = copy_bandwidth(threads or os.cpu_count() or 1)
    progress.phase("load the bundle")
    start = time.perf_counter()
    with OrtSession.open(bundle, max_batch=ONNXRUNTIME_ROWS, threads=threads) as session:
        load_s = time.perf_counter() - start
        rates = _rates(session, prefill, decode, decode_steps, progress)
        itemsize = 2 if session.compute_precision == "fp16" else 4
        floors = _floors(bundle.config, itemsize, bandwidth, rates[1])
        return Done(
            facts={
                "backend": session.describe(),
                "computes_in": session.compute_precision,
                "threads": threads,
                "load_s": load_s,
                "bandwidth_bytes_per_s": bandwidth,
                "bandwidth_source": "measured here: copies, bytes read plus bytes written",
                "prefill": [asdict(one) for one in rates[0]],
                "decode": floors,
            }
        )


def _on_cuda(
    bundle: Bundle,
    cuda_gpu: str,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    progress: Progress,
) -> Done:
    gpu = require_cuda_session(bundle, cuda_gpu)
    from nemo_trt.engines.open import open_session

    config, target = bundle.config, target_named(cuda_gpu)
    lengths, cached = _within(config.max_position_embeddings, prefill, decode, decode_steps)
    longest = max(*lengths, *(length + decode_steps for length in cached))  # cache: whole at open
    progress.phase("load the bundle")
    start = time.perf_counter()
    session = open_session(bundle, CUDA, max_batch=ONNXRUNTIME_ROWS, max_seq_len=longest)
    load_s = time.perf_counter() - start
    with contextlib.closing(session):
        rates = _rates(session, lengths, cached, decode_steps, progress)
        bandwidth = target.bandwidth_gb_s * 10**9
        return Done(
            facts={
                "backend": session.describe(),
                "computes_in": session.compute_precision,
                "gpu": gpu,
                "load_s": load_s,
                "bandwidth_bytes_per_s": bandwidth,
                "bandwidth_source": _sheet(target),
                "prefill": [asdict(one) for one in rates[0]],
                # FP8 weights lie on the GPU in the base dtype, as the cache does.
                "decode": _floors(config, bundle.precision.base.itemsize, bandwidth, rates[1]),
            }
        )


def _on_gpu(
    bundle: Bundle,
    engine: str,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    progress: Progress,
) -> Done:
    gpu = require_engine_gpu(bundle, engine)
    from nemo_trt.engines.trt.session import TensorRtSession

    progress.phase("load the engine")
    start = time.perf_counter()
    session = TensorRtSession.open(bundle, engine)
    load_s = time.perf_counter() - start
    target = target_named(session.record.options.target)
    try:
        rates = _rates(session, prefill, decode, decode_steps, progress)
        backend = session.describe()
    finally:
        session.close()

    def floor_s(one: Rate) -> float:
        budget = plan_engine(bundle, target, max_seq_len=one.tokens, max_batch=one.rows)
        return budget.floor_ms[1] / 1e3

    return Done(
        facts={
            "backend": backend,
            "computes_in": session.compute_precision,
            "gpu": gpu,
            "load_s": load_s,
            "bandwidth_bytes_per_s": target.bandwidth_gb_s * 10**9,
            "bandwidth_source": _sheet(target),
            "prefill": [asdict(one) for one in rates[0]],
            "decode": [{**asdict(one), "floor_s": floor_s(one)} for one in rates[1]],
        }
    )


def _sheet(target: Target) -> str:
    return f"data sheet of {target.name}: {target.source}"


def _floors(
    config: ModelConfig, itemsize: int, bandwidth: float, rates: Sequence[Rate]
) -> list[dict[str, float]]:
    """Decode rates with their floor: all that a step reads, over the bandwidth in bytes a second.

    Args:
        itemsize: bytes of a weight and of a cached number.
    """
    weights = config.num_parameters_per_step * itemsize
    token = 2 * config.num_layers * config.kv_size * itemsize
    return [
        {**asdict(one), "floor_s": (weights + one.rows * one.tokens * token) / bandwidth}
        for one in rates
    ]


def _rates(
    session: Session,
    prefill: Sequence[int],
    decode: Sequence[int],
    decode_steps: int,
    progress: Progress,
) -> tuple[list[Rate], list[Rate]]:
    limit = min(session.max_seq_len, session.config.max_position_embeddings)
    lengths, cached = _within(limit, prefill, decode, decode_steps)
    batches = batches_up_to(session.max_batch)
    return (
        prefill_rates(session, lengths, progress),
        decode_rates(session, batches, cached, decode_steps, progress),
    )


def _within(
    limit: int, prefill: Sequence[int], decode: Sequence[int], decode_steps: int
) -> tuple[list[int], list[int]]:
    """The lengths that end within a context of `limit` tokens.

    Raises:
        RequestError: none of a kind does.
    """
    lengths = [length for length in prefill if length <= limit]
    cached = [length for length in decode if length + decode_steps <= limit]
    if not lengths or not cached:
        raise RequestError(
            f"Lengths to measure must end within the context of {limit} tokens, got prefill "
            f"{list(prefill)} and decode {list(decode)} with {decode_steps} steps. Name shorter "
            "ones."
        )
    return lengths, cached
