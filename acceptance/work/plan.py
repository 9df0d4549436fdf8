"""Plan: whether the engine fits its GPU, by the checkpoint's shape, before anything is written."""

from pathlib import Path
from typing import Any

from nemo_trt.config import ModelConfig
from nemo_trt.defaults import ENGINE_SEQ_LEN
from nemo_trt.engines.planner import Budget, require_fit
from nemo_trt.progress import Progress

from .done import Done, require_packages


def run(
    *,
    checkpoint: str,
    precision: str,
    gpu: str,
    max_seq_len: int | None,
    max_batch: int,
    progress: Progress,
) -> Done:
    """Compute the engine's memory; raises what `require_fit` raises."""
    require_packages("export", "torch", "safetensors")
    from nemo_trt.stages.plan import plan_engine, planned

    progress.phase("read the checkpoint's shape")
    model = planned(Path(checkpoint), precision)
    most = plan_engine(model, gpu, max_batch=max_batch)
    chosen = max_seq_len or min(ENGINE_SEQ_LEN, most.max_seq_len)
    budget = plan_engine(model, gpu, max_seq_len=chosen, max_batch=max_batch)
    require_fit(budget, model)
    return Done(facts=_facts(budget, model.config))


def _facts(budget: Budget, config: ModelConfig) -> dict[str, Any]:
    target = budget.target
    return {
        "gpu": target.name,
        "sm": target.sm,
        "gpu_memory_bytes": target.memory_bytes,
        "gpu_bandwidth_bytes_per_s": target.bandwidth_gb_s * 10**9,
        "num_parameters": config.num_parameters,
        "max_seq_len": budget.max_seq_len,
        "max_batch": budget.max_batch,
        "weight_bytes": budget.weight_bytes,
        "kv_bytes": budget.kv_bytes,
        "scratch_bytes": budget.scratch_bytes,
        "free_bytes": budget.free_bytes,
        "weights_ms": budget.weights_ms,
        "floor_ms": budget.floor_ms,
        "build_disk_bytes": budget.disk_bytes,
        "build_host_bytes": budget.host_bytes,
        "longest_context_by_rows": {str(rows): n for rows, n in budget.fits.items()},
    }
