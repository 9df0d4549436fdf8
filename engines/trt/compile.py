"""Compiles one plan: parse, patch, configure, and write it as TensorRT makes it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from nemo_trt import atomic
from nemo_trt.progress import Progress

from .attention.paged_attention import PagedAttention
from .attention.place import PAGE_TABLE
from .attention.plugin import registered
from .engine_record import BuildOptions
from .lowering import LoweredGraph
from .network import caches, mend, multiply_as_stored, parse, require_paged
from .profiles import profile_named
from .stripped import without_weights
from .toolkit import Log, Toolkit

USER_ALLOCATION = "REQUIRE_USER_ALLOCATION"
"""Flag of a plan that allocates nothing while it runs, as capturing it requires."""
_POLL_S = 0.2
_MOST_PAGES = 2**22  # of a pool; its size is chosen when an engine is opened
_SHOWN_DEPTH = 3  # phases deeper than this are too many to show


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """Compiles plans of one graph, in a thread that can be told to stop.

    Attributes:
        options: what the engine is built for.
        graph: its weights must live as long.
        timing_cache: read if it exists, written after each plan; None for none.
        paged: the attention of an engine with pages.
    """

    options: BuildOptions
    toolkit: Toolkit
    graph: LoweredGraph
    timing_cache: Path | None
    progress: Progress
    paged: PagedAttention | None = None

    def compile(self, path: Path, profiles: tuple[str, ...], log: Log) -> tuple[int, str]:
        """Compile a plan and write it as it is made.

        Returns:
            Its size in bytes, and its digest.

        Raises:
            BuildError: TensorRT refuses it.
        """
        if self.paged is None:
            return self._compile(path, profiles, log)
        with registered(self.toolkit.api, self.paged, launcher=None):
            return self._compile(path, profiles, log)

    def _compile(self, path: Path, profiles: tuple[str, ...], log: Log) -> tuple[int, str]:
        api = self.toolkit.api
        builder = api.Builder(log.logger)
        graph = without_weights(self.graph) if self.options.strip else self.graph
        network = parse(self.toolkit, log, builder, graph)
        if self.paged:
            require_paged(self.toolkit, network, self.graph.num_layers)
        else:
            mend(
                self.toolkit,
                network,
                num_layers=self.graph.num_layers,
                allow_unfused=self.options.allow_unfused,
            )
        if self.options.strip:
            multiply_as_stored(self.toolkit, network)
        config = self._config(builder, network, profiles)
        monitor = _monitor(api, self.progress, path.stem)
        config.progress_monitor = monitor
        with path.open("wb") as file:
            writer = _writer(api, file)
            _wait(
                lambda: builder.build_serialized_network_to_stream(network, config, writer),
                monitor.stop,
            )
        if not writer.num_bytes or log.errors:
            raise log.failure(f"Compiling {path.stem}")
        self._keep_timings(config)
        return writer.num_bytes, writer.digest.hexdigest()

    def _config(self, builder: Any, network: Any, profiles: tuple[str, ...]) -> Any:
        config = builder_config(self.toolkit, builder, self.options)
        if self.paged:
            config.set_preview_feature(
                self.toolkit.api.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True
            )
        if self.timing_cache:
            known = self.timing_cache.read_bytes() if self.timing_cache.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), False)
        for profile in profiles:
            config.add_optimization_profile(self._profile(builder, network, profile))
        return config

    def _profile(self, builder: Any, network: Any, name: str) -> Any:
        wanted, options = profile_named(name, self.options), self.options
        profile = builder.create_optimization_profile()
        for input_name, shape in wanted.least.items():
            profile.set_shape(input_name, shape, wanted.best[input_name], wanted.most[input_name])
        least = usual = most = wanted.rows  # of the caches' first axis
        if self.paged:
            table = (wanted.rows, options.row_pages)
            profile.set_shape(PAGE_TABLE, table, table, table)
            least, usual, most = 1, options.max_batch * options.row_pages, _MOST_PAGES
        for cache in caches(network):
            rest = tuple(cache.shape)[1:]
            profile.set_shape(cache.name, (least, *rest), (usual, *rest), (most, *rest))
        return profile

    def _keep_timings(self, config: Any) -> None:
        if self.timing_cache:
            data = bytes(config.get_timing_cache().serialize())
            atomic.write_bytes(self.timing_cache, data)


def builder_config(toolkit: Toolkit, builder: Any, options: BuildOptions) -> Any:
    """A builder config for the GPU and the optimisation level of an engine."""
    config = builder.create_builder_config()
    config.profiling_verbosity = toolkit.api.ProfilingVerbosity.DETAILED
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    if hasattr(toolkit.api.BuilderFlag, USER_ALLOCATION):  # TensorRT-RTX: else it may allocate
        config.set_flag(getattr(toolkit.api.BuilderFlag, USER_ALLOCATION))  # in a captured run
    if toolkit.builds_without_gpu:
        config.num_compute_capabilities = 1
        capability = getattr(toolkit.api.ComputeCapability, f"SM{options.sm}")
        config.set_compute_capability(capability, 0)
    return config


def _wait(compile_plan: Callable[[], object], stop: threading.Event) -> None:
    """Compile in a thread: TensorRT holds the main one so long that Ctrl-C would not be heard.

    An interrupt is raised again as it came, for its kind is the exit code, once TensorRT has ended.
    """
    interrupt: KeyboardInterrupt | None = None
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(compile_plan)
        while not job.done():
            try:
                with suppress(TimeoutError):
                    job.result(timeout=_POLL_S)
            except KeyboardInterrupt as error:
                interrupt = interrupt or error
                stop.set()
    if interrupt is not None:
        raise interrupt
    job.result()


def _writer(api: Any, file: Any) -> Any:
    class Writer(api.IStreamWriter):  # type: ignore[misc]
        """Writes and digests a plan as it is made."""

        def __init__(self) -> None:
            api.IStreamWriter.__init__(self)
            self.num_bytes, self.digest = 0, blake3.blake3()

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
