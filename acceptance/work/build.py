"""Build: the bundle becomes an engine for the GPU that was named."""

from dataclasses import asdict
from pathlib import Path

from nemo_trt.engines.targets import target_named
from nemo_trt.errors import MachineError
from nemo_trt.progress import Progress

from .done import CannotHere, Done


def run(
    *,
    bundle: str,
    gpu: str,
    max_seq_len: int | None,
    max_batch: int,
    progress: Progress,
) -> Done:
    """Compile, unless this very engine is there already."""
    from nemo_trt.engines.trt.build import build_engine

    require_toolkit(gpu)
    record, built = build_engine(
        Path(bundle), gpu=gpu, max_seq_len=max_seq_len, max_batch=max_batch, progress=progress
    )
    plans = [
        {name: value for name, value in asdict(plan).items() if name != "kernels"}
        for plan in record.plans
    ]
    return Done(
        product={"engine_id": record.engine_id},
        facts={
            "engine": record.name,
            "toolkit": record.toolkit,
            "toolkit_version": record.toolkit_version,
            "driver": record.driver,
            "options": asdict(record.options),
            "plans": plans,
            "plan_bytes": sum(plan.num_bytes for plan in record.plans),
            "weight_bytes": record.weight_bytes,
            "build_s": record.build_s,
            "build_peak_rss_bytes": record.peak_host_bytes,
            "built_now": built,
        },
    )


def require_toolkit(gpu: str) -> None:
    """Raises `CannotHere` unless a TensorRT here compiles for a target."""
    from nemo_trt.engines.trt.toolkit import toolkit_for

    try:
        toolkit_for(target_named(gpu), "auto", "the same command again")
    except MachineError as error:
        raise CannotHere(str(error)) from error
