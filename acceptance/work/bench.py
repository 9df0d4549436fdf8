"""Bench: how fast the bundle is on ONNX Runtime, or the engine on its GPU, beside the lower
bound of a step."""

from collections.abc import Sequence
from dataclasses import asdict

from nemo_trt.bundle import Bundle
from nemo_trt.engines.measure import measure
from nemo_trt.progress import Progress

from .done import Done
from .here import required

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
    where, gpu = required(opened, engine, cuda_gpu)
    found = measure(
        opened,
        where,
        prefill_lengths=prefill,
        decode_lengths=decode,
        num_decode_steps=decode_steps,
        max_batch=None if engine else ONNXRUNTIME_ROWS,
        threads=threads if where.kind == "cpu" else None,
        progress=progress,
    )
    return Done(
        facts={
            "backend": found.runs_on,
            "computes_in": found.compute_precision,
            "gpu": gpu,
            "threads": found.threads,
            "load_s": found.load_s,
            "bandwidth_bytes_per_s": found.bandwidth_bytes_per_s,
            "bandwidth_source": found.bandwidth_source,
            "prefill": [asdict(one) for one in found.prefill],
            "decode": [asdict(one) for one in found.decode],
        }
    )
