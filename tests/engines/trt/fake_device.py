"""A stand-in for CUDA: device memory is one numpy array, addresses are offsets in it."""

from collections import Counter
from typing import Any

import numpy as np

from nemo_trt.errors import MachineError

_BASE = 4096  # so that 0 is no address


class FakeDevice:
    """`Device` in host memory. `fail_at` raises at the n-th allocation."""

    stream = 7

    def __init__(self, sm: int = 89, fail_at: int | None = None) -> None:
        self.sm, self.fail_at = sm, fail_at
        self.memory = np.zeros(64 * 2**20, np.uint8)
        self.next = _BASE
        self.free_memory = 0  # that it says it has left beside other things, if it lies
        self.total_memory = 80 * 10**9  # that it says it has while nothing is allocated
        self.pinned: list[np.ndarray] = []
        self.live: set[int] = set()
        self.graphs: set[int] = set()
        self.closed = False
        self.calls: Counter[str] = Counter()
        self.recording: list[Any] | None = None
        self.pending: list[tuple[np.ndarray, np.ndarray]] = []  # copies to the host
        self.recorded_copies: list[tuple[np.ndarray, np.ndarray]] = []
        self.recorded: dict[int, list[Any]] = {}

    def require_no_capture(self, what: str) -> None:
        """What waits for the device, or allocates, breaks a capture."""
        if self.recording is not None:
            self.recording = None
            raise MachineError(f"cudaErrorStreamCaptureUnsupported: {what}")

    def allocate(self, num_bytes: int) -> int:
        self.require_no_capture("allocate")
        self.calls["allocate"] += 1
        if self.fail_at is not None and self.calls["allocate"] >= self.fail_at:
            raise MachineError("CUDA's cudaMalloc failed: out of memory.")
        address = self.next
        self.next += -(-num_bytes // 256) * 256
        assert self.next <= len(self.memory)
        self.live.add(address)
        return address

    def free(self, address: int) -> None:
        self.require_no_capture("free")
        self.live.remove(address)

    def upload(self, address: int, array: np.ndarray) -> None:
        self.require_no_capture("copy from pageable memory")
        data = array.tobytes()
        self.memory[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def download(self, array: np.ndarray, address: int) -> None:
        self.require_no_capture("synchronise")
        self.calls["download"] += 1
        self.calls["bytes down"] += array.nbytes
        self.calls["pageable down"] += not any(np.shares_memory(array, one) for one in self.pinned)
        array.reshape(-1).view(np.uint8)[:] = self.memory[address : address + array.nbytes]

    def start_download(self, array: np.ndarray, address: int) -> None:
        """As late as a device may: what the host reads before it waits is wrong."""
        self.require_no_capture("copy")
        assert any(np.shares_memory(array, one) for one in self.pinned)
        self.calls["bytes down"] += array.nbytes
        self.pending.append((array, self.memory[address : address + array.nbytes].copy()))
        array.reshape(-1).view(np.uint8)[:] = 0xFF

    def record(self) -> None:
        self.calls["record"] += 1
        self.recorded_copies, self.pending = [*self.recorded_copies, *self.pending], []

    def wait(self) -> None:
        self.require_no_capture("wait for an event")
        self.calls["wait"] += 1
        for array, data in self.recorded_copies:
            array.reshape(-1).view(np.uint8)[:] = data
        self.recorded_copies.clear()

    def copy(self, target: int, source: int, num_bytes: int, *, count: int, pitch: int) -> None:
        assert num_bytes <= pitch
        for index in range(count):
            there, here = target + index * pitch, source + index * pitch
            self.at(there, (num_bytes,), np.uint8)[...] = self.at(here, (num_bytes,), np.uint8)

    def free_bytes(self) -> int:
        if not self.live:
            return self.total_memory
        return self.free_memory or len(self.memory) - self.next

    def pin(self, array: np.ndarray) -> None:
        self.pinned.append(array)

    def begin_capture(self) -> None:
        self.require_no_capture("begin another capture")
        self.calls["capture"] += 1
        self.recording = []

    def end_capture(self) -> object:
        graph = self.calls["capture"]
        if self.recording is None:
            raise MachineError("cudaErrorStreamCaptureInvalidated")
        self.recorded[graph], self.recording = self.recording, None
        self.graphs.add(graph)
        return graph

    def launch(self, graph: Any) -> None:
        self.require_no_capture("launch a graph")
        if graph not in self.graphs:
            raise MachineError("cudaErrorInvalidValue: no such graph")
        self.calls["launch"] += 1
        for work in self.recorded[graph]:
            work()

    def free_graph(self, graph: Any) -> None:
        self.graphs.remove(graph)

    def close(self) -> None:
        self.closed = True

    def at(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The numbers at an address, as a view."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert address >= _BASE and address + size <= self.next, "outside of allocated memory"
        return self.memory[address : address + size].view(dtype).reshape(shape)
