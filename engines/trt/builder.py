"""Builds an engine: lower, compile, check, record; atomically and only when needed."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from nemo_trt import __version__, atomic
from nemo_trt.bundle import Bundle
from nemo_trt.engines.planner import Budget, engine_budget, require_fit
from nemo_trt.engines.targets import Target
from nemo_trt.errors import BuildError
from nemo_trt.manifest import ENGINE_FILE, GRAPH_FILE
from nemo_trt.progress import Progress, Silent

from .attention.ahead import compile_attention
from .attention.paged_attention import PagedAttention
from .attention.place import Placement
from .attention.step import Heads
from .compile import Compiler
from .engine_record import BuildOptions, EngineRecord, PlanFile, same_build
from .kernels import (
    READ_LINES,
    Kernel,
    launches_per_layer,
    per_layer,
    read_kernels,
    require_fused_decode,
    require_paged_decode,
    scratch_bytes,
)
from .lowering import lower
from .probe import explain_unfused, require_fused
from .profiles import PREFILL, decode_names, is_decode
from .stripped import (
    digest_of,
    require_computed_as_stored,
    require_no_copies,
    taken_weights,
)
from .toolkit import Log, Toolkit

_SUFFIXES = {"base": "", "fp16": "-kv16", "fp8": "-kv8"}
"""Of an engine's name, by the dtype of its cache."""


def build_plans(
    bundle: Bundle | Path,
    options: BuildOptions,
    toolkit: Toolkit,
    *,
    target: Target,
    driver: str | None = None,
    timing_cache: Path | None = None,
    log_file: Path | None = None,
    progress: Progress | None = None,
) -> tuple[EngineRecord, bool]:
    """Build an engine into BUNDLE/engines/TARGET-PRECISION, unless it is there already.

    Host memory: about twice the weights' bytes; a plan is written as it is made.

    Args:
        bundle: what to build.
        options: for what.
        toolkit: with what.
        target: that of `options`.
        driver: of the GPU that compiles, where one does.
        timing_cache: of tensorrt alone; read if it exists, written after the build.
        log_file: TensorRT's verbose log, kept also when the build fails.

    Returns:
        The engine's record, and whether it was built now.

    Raises:
        BuildError: it does not fit the GPU, TensorRT refuses it, or what it compiled is wrong.
    """
    progress = progress or Silent()
    bundle = Bundle.open(bundle)
    if timing_cache and toolkit.builds_without_gpu:
        raise BuildError(f"{toolkit.name} times no kernels: leave --timing-cache out.")
    budget = engine_budget(
        bundle,
        target,
        max_seq_len=options.max_seq_len,
        max_batch=options.max_batch,
        prefill_chunk=options.prefill_chunk,
        num_plans=1 if options.single_plan else 2,
        paged=options.attention == "paged",
        kv_cache=options.kv_cache,
        strip=options.strip,
    )
    require_fit(budget, bundle)
    require_fused(options, budget.fused_tokens)
    name = f"{target.name}-{bundle.precision}"
    if options.attention == "paged":
        name += "-paged"
    name += _SUFFIXES[options.kv_cache]
    if options.strip:
        name += "-stripped"
    placement = _placement(bundle, options)
    scales = asdict(placement.fp8) if placement and placement.fp8 else None
    build_id = options.build_id(bundle.bundle_id, toolkit.name, toolkit.version, scales)
    if known := same_build(bundle, name, build_id):
        return known, False
    folder = bundle.engine_folder(name)
    _require_free_disk(bundle, budget)
    for path in (folder, log_file, timing_cache):
        if path:
            atomic.require_writable(path)
    started = time.monotonic()
    progress.phase("lower the graph")
    in_fp16 = options.kv_cache == "fp16"
    graph = lower(bundle.path, GRAPH_FILE, options.max_seq_len, placement, in_fp16=in_fp16)
    if options.strip:
        require_computed_as_stored(graph, bundle)
    with _log_to(log_file) as write_log, atomic.new_directory(folder) as new:
        paged = _attention(new, bundle, options, placement) if placement else None
        compiler = Compiler(
            options=options,
            toolkit=toolkit,
            graph=graph,
            timing_cache=timing_cache,
            progress=progress,
            paged=paged,
        )
        plans = _Build(bundle, compiler, write_log).plans(new)
        record = EngineRecord(
            name=name,
            build_id=build_id,
            bundle_id=bundle.bundle_id,
            precision=bundle.precision,
            options=options,
            toolkit=toolkit.name,
            toolkit_version=toolkit.version,
            driver=driver,
            weight_bytes=graph.num_bytes,
            plans=plans,
            build_s=round(time.monotonic() - started, 1),
            peak_host_bytes=_peak_host_bytes(),
            nemo_trt=__version__,
            paged=paged,
            stripped=digest_of(taken_weights(bundle)) if options.strip else None,
        )
        (new / ENGINE_FILE).write_text(record.to_json(), encoding="utf-8")
    return record, True


def _placement(bundle: Bundle, options: BuildOptions) -> Placement | None:
    """How an engine with pages stores keys and values; None for one without."""
    if options.attention != "paged":
        return None
    found = bundle.manifest.quantization
    scales = found.cache if found and options.kv_cache == "fp8" else None
    return Placement(page=options.page, base=bundle.precision.base, fp8=scales)


def _attention(
    folder: Path, bundle: Bundle, options: BuildOptions, placement: Placement
) -> PagedAttention:
    """The kernels of an engine with pages, compiled into its folder."""
    config, dtype = bundle.config, bundle.precision.base
    heads = Heads(
        kv_heads=config.num_kv_heads,
        group=config.num_heads // config.num_kv_heads,
        head_dim=config.head_dim,
        page=options.page,
    )
    return compile_attention(
        folder, heads, sm=options.sm, rows=options.max_batch, compute=dtype,
        scales=tuple(map(placement.scales, range(config.num_layers))),
    )  # fmt: skip


class _Build:
    """One build: each plan compiled, and what TensorRT says of it checked."""

    def __init__(
        self, bundle: Bundle, compiler: Compiler, write_log: Callable[[str], object]
    ) -> None:
        self.bundle, self.compiler, self.options = bundle, compiler, compiler.options
        self.write_log = write_log

    def plans(self, folder: Path) -> tuple[PlanFile, ...]:
        """Compile and check every plan into `folder`."""
        decode = decode_names(self.options.max_batch)
        layout = {"engine.plan": (PREFILL, *decode)}
        if not self.options.single_plan:
            layout = {"prefill.plan": (PREFILL,), "decode.plan": decode}
        return tuple(self._plan(folder / file, profiles) for file, profiles in layout.items())

    def _plan(self, path: Path, profiles: tuple[str, ...]) -> PlanFile:
        log = Log(self.compiler.toolkit, keep=READ_LINES, write=self.write_log)
        try:
            num_bytes, digest = self.compiler.compile(path, profiles, log)
        except BuildError:
            if any("is_decomposable" in error for error in log.errors):
                raise explain_unfused(self.bundle, self.compiler, profiles) from None
            raise
        unused = [line for line in log.kept if "Unused Input" in line]
        if unused:
            raise BuildError(f"Every input must be used, got: {unused[0]}.")
        kernels = dict(zip(profiles, read_kernels(log.kept, len(profiles)), strict=True))
        self._check(kernels)
        layers = self.bundle.config.num_layers
        scratch = scratch_bytes(log.kept)[-len(profiles) :]
        return PlanFile(
            file=path.name,
            num_bytes=num_bytes,
            digest=digest,
            profiles=profiles,
            kernels={profile: per_layer(found, layers) for profile, found in kernels.items()},
            launches_per_layer={
                profile: round(launches_per_layer(found, layers), 2)
                + (_more_launches(profile) if self.compiler.paged else 0)
                for profile, found in kernels.items()
            },
            scratch_bytes=dict(zip(profiles, scratch, strict=True)),
        )

    def _check(self, kernels: dict[str, list[Kernel]]) -> None:
        if self.options.strip:
            weights = taken_weights(self.bundle)
            for found in kernels.values():
                require_no_copies(found, weights)
        if self.options.allow_unfused:
            return
        config, products = self.bundle.config, self.compiler.graph.num_fp8_products
        for profile, found in kernels.items():
            if not is_decode(profile):
                continue
            if self.compiler.paged:
                require_paged_decode(found, config, self.options.page, fp8_products=products)
            else:
                require_fused_decode(found, config, self.options.max_seq_len, fp8_products=products)


def _more_launches(profile: str) -> int:
    """Kernels of the attention plugin in a layer, but for one: the log counts it as one."""
    return 2 if is_decode(profile) else 1


def _require_free_disk(bundle: Bundle, budget: Budget) -> None:
    status = os.statvfs(bundle.path)
    free = status.f_bavail * status.f_frsize
    if free < budget.disk_bytes:
        raise BuildError(
            f"{bundle} must have {budget.disk_bytes / 1e9:.1f} GB of disk free for the plan, got "
            f"{free / 1e9:.1f} GB."
        )


def _peak_host_bytes() -> int:
    """The largest memory that this process has had, mapped files included."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return 0


@contextmanager
def _log_to(path: Path | None) -> Iterator[Callable[[str], object]]:
    """A function that writes a line to the file, which is there also when the build fails."""
    if path is None:
        yield lambda line: None
        return
    failure: BaseException | None = None
    with atomic.new_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        try:
            yield lambda line: file.write(f"{line}\n")
        except BaseException as error:
            failure = error  # raised when the file has its name
    if failure is not None:
        raise failure
