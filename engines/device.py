"""The border to CUDA: memory, one stream and graphs of one device, through cuda-python."""

from typing import Any, Protocol

from numpy.typing import NDArray

from nemo_trt.errors import MachineError


class Device(Protocol):
    """What a session needs of a GPU. Addresses are device pointers; work is ordered by one stream.

    Every method may raise a MachineError with CUDA's own words.
    """

    sm: int
    stream: int

    def allocate(self, num_bytes: int) -> int:
        """Zeroed memory; its address."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def free_bytes(self) -> int:
        """Memory that can still be allocated."""

    def pin(self, array: NDArray[Any]) -> None:
        """Let the device copy from and to a host array at full speed, until `close`."""

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the device."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy to a contiguous array, and wait until it is there."""

    def start_download(self, array: NDArray[Any], address: int) -> None:
        """Copy to a contiguous array that is pinned; it is there after `record` and `wait`."""

    def record(self) -> None:
        """Remember what was put on the stream so far."""

    def wait(self) -> None:
        """Wait, without using the processor, until what `record` remembered is done."""

    def copy(self, target: int, source: int, num_bytes: int, *, count: int, pitch: int) -> None:
        """Copy `count` pieces of `num_bytes`, each `pitch` bytes after the one before, on the
        device."""

    def begin_capture(self) -> None:
        """Record what is put on the stream from now on, instead of doing it."""

    def end_capture(self) -> object:
        """The graph of what was recorded."""

    def launch(self, graph: object) -> None:
        """Do what a graph holds."""

    def free_graph(self, graph: object) -> None:
        """Give a graph back."""

    def close(self) -> None:
        """Give the stream back; arrays are pinned no more."""


class CudaDevice:
    """A `Device` on the CUDA runtime."""

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.bindings import runtime
        except (ImportError, OSError) as error:
            raise MachineError(
                f"cuda-python must be installed and load, got: {error}. "
                "Install it: pip install 'nemo-trt[gpu]'."
            ) from error
        self._cuda: Any = runtime
        self._call("cudaSetDevice", index)
        attribute = runtime.cudaDeviceAttr
        major = self._call(
            "cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, index
        )
        minor = self._call(
            "cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, index
        )
        self.sm = 10 * int(major) + int(minor)
        self._stream = self._call("cudaStreamCreate")
        self.stream = int(self._stream)
        flags = runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming
        self._recorded = self._call("cudaEventCreateWithFlags", flags)
        self._pinned: list[NDArray[Any]] = []

    def allocate(self, num_bytes: int) -> int:
        """See `Device.allocate`."""
        address = int(self._call("cudaMalloc", num_bytes))
        self._call("cudaMemsetAsync", address, 0, num_bytes, self._stream)
        return address

    def free(self, address: int) -> None:
        """See `Device.free`."""
        self._call("cudaFree", address)

    def free_bytes(self) -> int:
        """See `Device.free_bytes`."""
        return int(self._call("cudaMemGetInfo")[0])

    def pin(self, array: NDArray[Any]) -> None:
        """See `Device.pin`."""
        self._call("cudaHostRegister", array.ctypes.data, array.nbytes, 0)
        self._pinned.append(array)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See `Device.upload`."""
        self._copy(address, array.ctypes.data, array, "cudaMemcpyHostToDevice")

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Device.download`."""
        self._copy(array.ctypes.data, address, array, "cudaMemcpyDeviceToHost")
        self._call("cudaStreamSynchronize", self._stream)

    def start_download(self, array: NDArray[Any], address: int) -> None:
        """See `Device.start_download`."""
        self._copy(array.ctypes.data, address, array, "cudaMemcpyDeviceToHost")

    def record(self) -> None:
        """See `Device.record`."""
        self._call("cudaEventRecord", self._recorded, self._stream)

    def wait(self) -> None:
        """See `Device.wait`."""
        self._call("cudaEventSynchronize", self._recorded)

    def copy(self, target: int, source: int, num_bytes: int, *, count: int, pitch: int) -> None:
        """See `Device.copy`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(
            "cudaMemcpy2DAsync", target, pitch, source, pitch, num_bytes, count, kind, self._stream
        )

    def begin_capture(self) -> None:
        """See `Device.begin_capture`."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> object:
        """See `Device.end_capture`."""
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            executable: object = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, graph: object) -> None:
        """See `Device.launch`."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def free_graph(self, graph: object) -> None:
        """See `Device.free_graph`."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """See `Device.close`."""
        for array in self._pinned:
            self._call("cudaHostUnregister", array.ctypes.data)
        self._pinned.clear()
        self._call("cudaEventDestroy", self._recorded)
        self._call("cudaStreamDestroy", self._stream)

    def _copy(self, to: int, source: int, array: NDArray[Any], kind: str) -> None:
        if not array.flags.c_contiguous:
            raise ValueError("only contiguous arrays are copied")
        direction = getattr(self._cuda.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", to, source, array.nbytes, direction, self._stream)

    def _call(self, name: str, *arguments: object) -> Any:
        """Call the CUDA runtime; its answer begins with a status."""
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            words = self._cuda.cudaGetErrorString(status)[1]
            text = words.decode() if isinstance(words, bytes) else str(words)
            raise MachineError(f"CUDA's {name} failed: {text}.")
        return results[0] if len(results) == 1 else tuple(results)
