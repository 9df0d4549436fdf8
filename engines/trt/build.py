"""Compiles a bundle for a named GPU: plan, choose the toolkit, build."""

from pathlib import Path
from typing import Literal

from nemo_trt.bundle import Bundle
from nemo_trt.defaults import ENGINE_SEQ_LEN
from nemo_trt.engines.planned import CacheKind
from nemo_trt.engines.planner import DEFAULT_CHUNK, MAX_LOGITS, engine_budget, require_fit
from nemo_trt.engines.targets import target_named
from nemo_trt.progress import Progress

from .builder import build_plans
from .engine_record import PAGE, AttentionKind, BuildOptions, EngineRecord
from .toolkit import ToolkitName, toolkit_for


def build_engine(
    bundle: Bundle | Path,
    *,
    gpu: str,
    max_seq_len: int | None = None,
    max_batch: int = 1,
    prefill_chunk: int = DEFAULT_CHUNK,
    toolchain: ToolkitName | Literal["auto"] = "auto",
    opt_level: int | None = None,
    timing_cache: Path | None = None,
    single_plan: bool = True,
    allow_unfused: bool = False,
    attention: AttentionKind = "native",
    page: int = PAGE,
    kv_cache: CacheKind = "base",
    strip: bool = False,
    log_file: Path | None = None,
    progress: Progress | None = None,
) -> tuple[EngineRecord, bool]:
    """Compile a bundle into BUNDLE/engines/GPU-PRECISION, unless that engine exists already.

    Args:
        bundle: an open bundle, or its folder.
        gpu: name of the GPU; `nemo-trt plan` lists them.
        max_seq_len: tokens per row; by default 4096, or fewer if they do not fit.
        max_batch: number of rows.
        prefill_chunk: tokens of one row that a prefill step takes.
        toolchain: the TensorRT library to compile with; "auto" chooses one that supports the GPU.
        opt_level: TensorRT's builder optimisation level; its own default if None.
        timing_cache: file that keeps TensorRT's kernel timings between builds.
        single_plan: put prefill and decode into one plan, which holds the weights once.
        allow_unfused: accept a plan whose attention is not fused.
        attention: "native" is TensorRT's own; "paged" is ours, over a cache in pages, for contexts
            that TensorRT's cannot take. It has not run on a GPU inside an engine yet.
        page: tokens of a page, 16, 32, 64 or 128.
        kv_cache: "base" stores keys and values in the dtype of activations; "fp16" lets a BF16 or
            FP8 bundle attend in FP16, over a cache in FP16, with native attention; "fp8", of pages,
            with the bundle's scales, in the layers that its calibration found to take it.
        strip: leave the weights out of the plan, which is then compiled in a fraction of the time;
            the engine reads them from the bundle when it is opened. None has run on a GPU yet.
        log_file: file for TensorRT's log.
        progress: receives progress updates; silent by default.

    Returns:
        The engine's record, and whether this call built it.

    Raises:
        BuildError: the engine does not fit, TensorRT refuses it, or its kernels fail the checks.
        MachineError: no TensorRT installed here can compile for this GPU.
        RequestError: there is no such GPU, or a number is out of range.
    """
    target = target_named(gpu)
    bundle = Bundle.open(bundle)
    budget = engine_budget(
        bundle,
        target,
        max_seq_len=max_seq_len,
        max_batch=max_batch,
        prefill_chunk=prefill_chunk,
        num_plans=1 if single_plan else 2,
        paged=attention == "paged",
        kv_cache=kv_cache,
        strip=strip,
    )
    require_fit(budget, bundle)
    asked = f"nemo-trt build {bundle} --gpu {target.name}"
    toolkit, driver = toolkit_for(target, toolchain, asked)
    return build_plans(
        bundle,
        BuildOptions(
            target=target.name,
            sm=target.sm,
            max_seq_len=max_seq_len or min(ENGINE_SEQ_LEN, budget.max_seq_len),
            max_batch=max_batch,
            prefill_chunk=min(prefill_chunk, budget.max_seq_len),
            max_logits=min(MAX_LOGITS, prefill_chunk),
            opt_level=opt_level,
            single_plan=single_plan,
            allow_unfused=allow_unfused,
            attention=attention,
            page=page,
            kv_cache=kv_cache,
            strip=strip,
        ),
        toolkit,
        target=target,
        driver=driver,
        timing_cache=timing_cache,
        log_file=log_file,
        progress=progress,
    )
