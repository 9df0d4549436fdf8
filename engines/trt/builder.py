"""Builds an engine: lower, parse, mend, compile, check, record; atomically and only when needed."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_trt import __version__, atomic
from nemo_trt.bundle import Bundle
from nemo_trt.engines.planner import Budget, engine_budget, require_fit
from nemo_trt.engines.targets import Target
from nemo_trt.errors import BuildError
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.progress import Progress, Silent

from .kernels import (
    Kernel,
    launches_per_layer,
    per_layer,
    read_kernels,
    require_fused_decode,
    scratch_bytes,
)
from .lowering import LoweredGraph, lower
from .network import caches, mend, parse, step_inputs
from .probe import attention_graph
from .record import RECORD_FILE, BuildOptions, EngineRecord, PlanFile, same_build
from .toolkit import Log, Toolkit

PROFILES = ("prefill", "decode")
_POLL_S = 0.2
_PROBE_STEP = 512  # tokens; contexts are probed in multiples of it
_SHOWN_DEPTH = 3  # phases deeper than this are too many to show


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
        num_plans=1 if options.single_plan else len(PROFILES),
    )
    require_fit(budget, bundle)
    name = f"{target.name}-{bundle.precision}"
    build_id = options.build_id(bundle.bundle_id, toolkit.name, toolkit.version)
    if known := same_build(bundle, name, build_id):
        return known, False
    folder = bundle.engine_folder(name)
    _require_free_disk(bundle, budget)
    started = time.monotonic()
    progress.phase("lower the graph")
    graph = lower(bundle.path, GRAPH_FILE, options.max_seq_len)
    build = _Build(bundle, options, toolkit, graph, timing_cache, progress)
    try:
        with atomic.new_directory(folder) as new:
            plans = build.plans(new)
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
            )
            (new / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    finally:
        if log_file:
            atomic.write_text(log_file, "\n".join(build.log_lines) + "\n")
    return record, True


class _Build:
    """One build: a network for each plan, compiled in a thread that can be told to stop."""

    def __init__(
        self,
        bundle: Bundle,
        options: BuildOptions,
        toolkit: Toolkit,
        graph: LoweredGraph,
        timing_cache: Path | None,
        progress: Progress,
    ) -> None:
        self.bundle, self.options, self.toolkit = bundle, options, toolkit
        self.graph, self.timing_cache, self.progress = graph, timing_cache, progress
        self.log_lines: list[str] = []

    def plans(self, folder: Path) -> tuple[PlanFile, ...]:
        """Compile and check every plan into `folder`."""
        layout: dict[str, tuple[str, ...]] = {"engine.plan": PROFILES}
        if not self.options.single_plan:
            layout = {f"{profile}.plan": (profile,) for profile in PROFILES}
        return tuple(self._plan(folder / file, profiles) for file, profiles in layout.items())

    def _plan(self, path: Path, profiles: tuple[str, ...]) -> PlanFile:
        log = Log(self.toolkit)
        self.log_lines = log.lines
        try:
            num_bytes, sha256 = self._compile(path, profiles, log)
        except BuildError:
            if any("is_decomposable" in error for error in log.errors):
                raise self._explain_unfused(profiles) from None
            raise
        unused = [line for line in log.lines if "Unused Input" in line]
        if unused:
            raise BuildError(f"Every input must be used, got: {unused[0]}.")
        kernels = dict(zip(profiles, read_kernels(log.lines, len(profiles)), strict=True))
        self._check(kernels)
        layers = self.bundle.config.num_layers
        scratch = scratch_bytes(log.lines)[-len(profiles) :]
        return PlanFile(
            file=path.name,
            num_bytes=num_bytes,
            sha256=sha256,
            profiles=profiles,
            kernels={profile: per_layer(found, layers) for profile, found in kernels.items()},
            launches_per_layer={
                profile: round(launches_per_layer(found, layers), 2)
                for profile, found in kernels.items()
            },
            scratch_bytes=dict(zip(profiles, scratch, strict=True)),
        )

    def _check(self, kernels: dict[str, list[Kernel]]) -> None:
        if "decode" not in kernels or self.options.allow_unfused:
            return
        require_fused_decode(
            kernels["decode"],
            self.bundle.config,
            self.options.max_seq_len,
            fp8_products=self.graph.num_fp8_products,
        )

    def _compile(self, path: Path, profiles: tuple[str, ...], log: Log) -> tuple[int, str]:
        """Compile a plan and write it as it is made; its bytes and sha256."""
        api = self.toolkit.api
        builder = api.Builder(log.logger)
        network = parse(self.toolkit, log, builder, self.graph)
        mend(
            self.toolkit,
            network,
            num_layers=self.graph.num_layers,
            allow_unfused=self.options.allow_unfused,
        )
        config = self._config(builder, network, profiles)
        monitor = _monitor(api, self.progress, path.stem)
        config.progress_monitor = monitor
        with path.open("wb") as file:
            writer = _writer(api, file)
            _wait(
                lambda: builder.build_serialized_network_to_stream(network, config, writer),
                monitor.stop,
            )
        if monitor.stop.is_set():
            raise KeyboardInterrupt
        if not writer.num_bytes or log.errors:
            raise log.failure(f"Compiling {path.stem}")
        self._keep_timings(config)
        return writer.num_bytes, writer.digest.hexdigest()

    def _config(self, builder: Any, network: Any, profiles: tuple[str, ...]) -> Any:
        api, options = self.toolkit.api, self.options
        config = builder.create_builder_config()
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        if options.opt_level is not None:
            config.builder_optimization_level = options.opt_level
        if self.toolkit.builds_without_gpu:
            config.num_compute_capabilities = 1
            capability = getattr(api.ComputeCapability, f"SM{options.sm}")
            config.set_compute_capability(capability, 0)
        if self.timing_cache:
            known = self.timing_cache.read_bytes() if self.timing_cache.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), False)
        for profile in profiles:
            config.add_optimization_profile(self._profile(builder, network, profile))
        return config

    def _profile(self, builder: Any, network: Any, name: str) -> Any:
        """Prefill: one row, 1 to chunk tokens. Decode: 1 to max_batch rows, one token."""
        options = self.options
        chunk, logits = options.prefill_chunk, options.max_logits
        if name == "prefill":
            rows = 1
            least, best, most = (
                step_inputs(1, 1, 1),
                step_inputs(1, chunk, 1),
                step_inputs(1, chunk, min(chunk, logits)),
            )
        else:
            rows = options.max_batch
            least, best, most = (
                step_inputs(1, 1, 1),
                step_inputs(rows, 1, 1),
                step_inputs(rows, 1, 1),
            )
        profile = builder.create_optimization_profile()
        for input_name, shape in least.items():
            profile.set_shape(input_name, shape, best[input_name], most[input_name])
        for cache in caches(network):
            rest = tuple(cache.shape)[1:]
            profile.set_shape(cache.name, (1, *rest), (rows, *rest), (rows, *rest))
        return profile

    def _keep_timings(self, config: Any) -> None:
        if self.timing_cache:
            data = bytes(config.get_timing_cache().serialize())
            temporary = atomic.temporary_sibling(self.timing_cache)
            temporary.write_bytes(data)
            temporary.replace(self.timing_cache)

    def _explain_unfused(self, profiles: tuple[str, ...]) -> BuildError:
        """Find the longest context that has fused attention, and say so."""
        asked = self.options.max_seq_len
        longest = self._longest_fused(profiles)
        remedy = f"--max-seq-len {longest}" if longest else "another GPU"
        return BuildError(
            f"{self.options.target} has no fused attention for a cache of {asked} tokens a row: "
            f"{longest or 'none'} is the most of what was tried. Build with {remedy}, or with "
            "--allow-unfused: correct, but each step then writes keys and values expanded to all "
            "query heads."
        )

    def _longest_fused(self, profiles: tuple[str, ...]) -> int:
        """By halving: compile attention alone, for shorter caches."""
        low, high = 0, -(-self.options.max_seq_len // _PROBE_STEP)
        self.progress.phase("probe shorter contexts")
        while high - low > 1:
            middle = (low + high) // 2
            fused = all(self._is_fused(middle * _PROBE_STEP, profile) for profile in profiles)
            low, high = (middle, high) if fused else (low, middle)
        return low * _PROBE_STEP

    def _is_fused(self, capacity: int, profile: str) -> bool:
        options = replace(self.options, max_seq_len=capacity)
        graph = attention_graph(self.bundle.config, self.bundle.precision, capacity)
        probe = _Build(self.bundle, options, self.toolkit, graph, None, Silent())
        try:
            probe._compile(Path(os.devnull), (profile,), Log(self.toolkit))
        except BuildError:
            return False
        return True


def _wait(compile_plan: Callable[[], object], stop: threading.Event) -> None:
    """Compile in a thread: TensorRT holds the main one so long that Ctrl-C would not be heard."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(compile_plan)
        while True:
            try:
                with suppress(TimeoutError):
                    job.result(timeout=_POLL_S)
                    return
            except KeyboardInterrupt:
                stop.set()


def _writer(api: Any, file: Any) -> Any:
    class Writer(api.IStreamWriter):  # type: ignore[misc]
        """Writes and digests a plan as it is made."""

        def __init__(self) -> None:
            api.IStreamWriter.__init__(self)
            self.num_bytes, self.digest = 0, hashlib.sha256()

        def write(self, data: bytes) -> int:
            self.digest.update(data)
            file.write(data)
            self.num_bytes += len(data)
            return len(data)

    return Writer()


def _monitor(api: Any, progress: Progress, plan: str) -> Any:
    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        """Passes phases on; answers False, which stops TensorRT, once `stop` is set."""

        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.stop = threading.Event()
            self._depth: dict[str, int] = {}
            self._shown = ""

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self._depth[name] = self._depth.get(parent or "", 0) + 1
            if self._depth[name] <= _SHOWN_DEPTH and num_steps > 1:
                self._shown = name
                progress.phase(f"{plan}: {name.lower()}", num_steps)

        def step_complete(self, name: str, step: int) -> bool:
            if name == self._shown:
                progress.advance()
            return not self.stop.is_set()

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()


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
