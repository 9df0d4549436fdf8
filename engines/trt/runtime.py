"""The border to TensorRT's runtime: a plan on the device, and contexts that run its profiles."""

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from nemo_trt.errors import BuildError, MachineError

from .attention.driver import DriverLauncher
from .attention.paged_attention import PagedAttention
from .attention.plugin import registered
from .runtime_cache import RuntimeCache
from .toolkit import Log, Toolkit

SPECIALIZATION = "DynamicShapesKernelSpecializationStrategy"
"""TensorRT-RTX's name for when kernels of dynamic shapes are compiled."""


class Context(Protocol):
    """One profile of a plan, ready to run."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Fix an input's shape."""

    def set_address(self, name: str, address: int) -> None:
        """Bind an input or output to device memory."""

    def enqueue(self, stream: int) -> None:
        """Put one run on a stream."""

    def capturable(self, stream: int) -> bool:
        """Whether a run with these shapes may be captured from a stream as a CUDA graph."""

    def close(self) -> None:
        """Free it."""


class Plan(Protocol):
    """A plan's weights on the device."""

    @property
    def scratch_bytes(self) -> int:
        """Device memory that any of its profiles needs while it runs."""

    def context(self, profile: int, stream: int, scratch: int, scratch_bytes: int) -> Context:
        """A context of a profile that works in `scratch`, which others may share."""

    def keep_compiled(self) -> None:
        """Keep what was compiled for its contexts, for the next time that it is opened."""

    def close(self) -> None:
        """Free it, after its contexts."""


class TensorRtPlan:
    """A `Plan` that TensorRT has loaded.

    Args:
        path: the file, read once: TensorRT loads the very mapping that was digested.
        digest: that it must have.
        paged: the attention of an engine with pages; its kernels lie beside the plan.

    Raises:
        BuildError: the file, or a kernel, was altered.
        MachineError: TensorRT does not load it.
    """

    def __init__(
        self, toolkit: Toolkit, path: Path, digest: str, paged: PagedAttention | None = None
    ) -> None:
        self._api: Any = toolkit.api
        self._log = Log(toolkit)
        self._runtime: Any = self._api.Runtime(self._log.logger)
        self._launcher = DriverLauncher(path.parent, paged) if paged else None
        self._config: Any = None
        self._cache: RuntimeCache | None = None
        self._engine: Any = None
        with ExitStack() as failing, ExitStack() as loading:
            failing.callback(self.close)
            if paged:
                loading.enter_context(registered(self._api, paged, self._launcher))
            data = loading.enter_context(map_verified(path, digest))
            self._engine = self._runtime.deserialize_cuda_engine(data)
            if self._engine is not None:
                failing.pop_all()
        if self._engine is None:
            raise MachineError(f"{path} does not load: {self._last_error()}")
        self._config = self._runtime_config()
        if hasattr(self._config, "create_runtime_cache"):  # TensorRT-RTX's own
            self._cache = RuntimeCache(self._config, path, digest)

    @property
    def scratch_bytes(self) -> int:
        """See `Plan.scratch_bytes`."""
        return int(self._engine.device_memory_size_v2)

    def context(self, profile: int, stream: int, scratch: int, scratch_bytes: int) -> Context:
        """See `Plan.context`."""
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise MachineError(f"TensorRT made no context: {self._last_error()}")
        known = len(self._log.errors)
        context.set_device_memory(scratch, scratch_bytes)  # answers nothing
        if len(self._log.errors) > known:
            raise MachineError(f"TensorRT refuses its scratch memory: {self._last_error()}")
        if not context.set_optimization_profile_async(profile, stream):
            raise MachineError(f"TensorRT refuses profile {profile}: {self._last_error()}")
        return TensorRtContext(context, self._log)

    def keep_compiled(self) -> None:
        """See `Plan.keep_compiled`."""
        if self._cache:
            self._cache.keep()

    def close(self) -> None:
        """See `Plan.close`."""
        self._cache = self._config = self._engine = self._runtime = None
        if self._launcher:
            self._launcher.close()

    def _runtime_config(self) -> Any:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._api.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if hasattr(self._api, SPECIALIZATION):  # TensorRT-RTX compiles kernels for shapes it meets
            eager = getattr(self._api, SPECIALIZATION).EAGER  # a graph keeps what was there
            config.dynamic_shapes_kernel_specialization_strategy = eager
        return config

    def _last_error(self) -> str:
        return self._log.errors[-1] if self._log.errors else "TensorRT gave no reason."


@contextmanager
def map_verified(path: Path, digest: str) -> Iterator[mmap.mmap]:
    """Map a plan that has the digest of its record.

    Raises:
        BuildError: it has another, or is not there.
    """
    import blake3

    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BuildError(f"{path} cannot be read: {error}. Build the engine again.") from error
    with data:
        found = blake3.blake3(data, max_threads=blake3.blake3.AUTO).hexdigest()
        if found != digest:
            raise BuildError(
                f"{path} must have the digest {digest[:12]} of its record, got {found[:12]}: it "
                "was altered after it was built. Build the engine again."
            )
        yield data


class TensorRtContext:
    """A `Context` of TensorRT: what it answers with False becomes an error."""

    def __init__(self, context: Any, log: Log) -> None:
        self._context, self._log = context, log

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """See `Context.set_shape`."""
        self._require(self._context.set_input_shape(name, shape), f"the shape {shape} of {name}")

    def set_address(self, name: str, address: int) -> None:
        """See `Context.set_address`."""
        self._require(self._context.set_tensor_address(name, address), f"the memory of {name}")

    def enqueue(self, stream: int) -> None:
        """See `Context.enqueue`."""
        self._require(self._context.execute_async_v3(stream), "to run")

    def capturable(self, stream: int) -> bool:
        """See `Context.capturable`."""
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX's own
        return ask is None or bool(ask(stream))

    def close(self) -> None:
        """See `Context.close`."""
        self._context = None

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            reason = self._log.errors[-1] if self._log.errors else "no reason given"
            raise MachineError(f"TensorRT refuses {what}: {reason}")
