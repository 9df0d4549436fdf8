"""The border to CUDA's driver: loads the kernels of an engine and launches them on a stream."""

import ctypes
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import blake3

from nemo_trt.errors import BuildError, MachineError

from .paged_attention import KernelFile, PagedAttention
from .step import Call

_CTYPES = {"pointer": ctypes.c_void_p, "i32": ctypes.c_int32, "fp32": ctypes.c_float}
_THREADS_OF_A_WARP = 32
_ALIGNMENT = 16  # bytes: what the kernels were compiled for


class Launcher(Protocol):
    """What the plugin needs of a GPU."""

    def launch(self, call: Call, cache: str, pointers: Mapping[str, int], stream: int) -> None:
        """Put the kernel for pages of a dtype on a stream. Pointers are device addresses, multiples
        of 16."""


class DriverLauncher:
    """A `Launcher` on CUDA's driver, in the context that is current.

    Args:
        folder: the engine's.
        record: what it holds; the digests are checked.

    Raises:
        BuildError: a kernel was altered or is missing.
        MachineError: the driver does not load one.
    """

    def __init__(self, folder: Path, record: PagedAttention) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        self._modules: list[Any] = []
        self._functions: dict[tuple[str, str], tuple[KernelFile, Any]] = {}
        with ExitStack() as failing:
            failing.callback(self.close)
            for kernel in record.kernels:
                self._load(kernel, _verified(folder / kernel.file, kernel.digest))
            failing.pop_all()

    def _load(self, kernel: KernelFile, code: bytes) -> None:
        module = self._call("cuModuleLoadData", code)
        self._modules.append(module)
        function = self._call("cuModuleGetFunction", module, kernel.entry.encode())
        attribute = self._driver.CUfunction_attribute
        self._call(
            "cuFuncSetAttribute", function,
            attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared_bytes,
        )  # fmt: skip
        self._functions[kernel.name, kernel.cache] = kernel, function

    def launch(self, call: Call, cache: str, pointers: Mapping[str, int], stream: int) -> None:
        """See `Launcher.launch`."""
        kernel, function = self._functions[call.kernel, cache]
        values, kinds = arguments(kernel, call, pointers)
        self._call(
            "cuLaunchKernel", function, *call.grid, _THREADS_OF_A_WARP * kernel.num_warps, 1, 1,
            kernel.shared_bytes, stream, (values, kinds), 0,
        )  # fmt: skip

    def close(self) -> None:
        """Unload the kernels; a second call does nothing."""
        while self._modules:
            self._call("cuModuleUnload", self._modules.pop())

    def _call(self, name: str, *arguments: object) -> Any:
        status, *results = getattr(self._driver, name)(*arguments)
        if int(status) != 0:
            words = self._driver.cuGetErrorString(status)[1]
            text = words.decode() if isinstance(words, bytes) else str(words)
            raise MachineError(f"CUDA's {name} failed: {text}.")
        return results[0] if results else None


def arguments(
    kernel: KernelFile, call: Call, pointers: Mapping[str, int]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """A launch's values and C types, in the order in which the kernel takes them.

    Raises:
        MachineError: an argument is missing, is none of the kernel's, or is not aligned.
    """
    given: dict[str, Any] = {**pointers, **call.numbers}
    named = {name for name, _ in kernel.parameters if name}
    if named != set(given):
        raise MachineError(f"{kernel.name} takes {sorted(named)}, got {sorted(given)}.")
    odd = [name for name, address in pointers.items() if address % _ALIGNMENT]
    if odd:
        raise MachineError(f"{kernel.name} must get addresses of multiples of 16, got {odd[0]}.")
    values = tuple(given[name] if name else 0 for name, _ in kernel.parameters)
    return values, tuple(_CTYPES[kind] for _, kind in kernel.parameters)


def _verified(path: Path, digest: str) -> bytes:
    """A kernel's code, if it is what the record says.

    Raises:
        BuildError: it is not, or cannot be read.
    """
    try:
        code = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error}. Build the engine again.") from error
    if blake3.blake3(code).hexdigest() != digest:
        raise BuildError(f"{path} was altered after it was built. Build the engine again.")
    return code
