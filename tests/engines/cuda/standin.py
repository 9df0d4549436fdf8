"""Host memory and ONNX Runtime's CPU provider in the place of a GPU: everything but the kernels.

Addresses are real ones, so ONNX Runtime reads and writes where the session binds it to.
"""

import ctypes
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from nemo_trt.engines.ort_graph import Weight, session_options
from nemo_trt.errors import MachineError


class HostDevice:
    """`Device` in host memory. `fail_at` raises at the n-th allocation."""

    sm, stream = 90, 7

    def __init__(self, free: int = 2**40, fail_at: int | None = None) -> None:
        self.free_memory, self.fail_at = free, fail_at
        self.live: dict[int, np.ndarray] = {}
        self.pinned: list[np.ndarray] = []
        self.calls: Counter[str] = Counter()
        self.closed = False

    def allocate(self, num_bytes: int) -> int:
        self.calls["allocate"] += 1
        if self.fail_at is not None and self.calls["allocate"] >= self.fail_at:
            raise MachineError("CUDA's cudaMalloc failed: out of memory.")
        memory = np.zeros(num_bytes, np.uint8)
        self.live[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free(self, address: int) -> None:
        del self.live[address]

    def free_bytes(self) -> int:
        return self.free_memory

    def pin(self, array: np.ndarray) -> None:
        self.pinned.append(array)

    def upload(self, address: int, array: np.ndarray) -> None:
        self.holder(address, array.nbytes)
        assert array.flags.c_contiguous
        self.calls["bytes up"] += array.nbytes
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        self.holder(address, array.nbytes)
        self.calls["bytes down"] += array.nbytes
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy(self, target: int, source: int, num_bytes: int, *, count: int, pitch: int) -> None:
        assert num_bytes <= pitch
        for index in range(count):
            there, here = target + index * pitch, source + index * pitch
            self.holder(there, num_bytes)
            self.holder(here, num_bytes)
            ctypes.memmove(there, here, num_bytes)

    def holder(self, address: int, num_bytes: int) -> int:
        """The allocation that a span lies in."""
        for start, memory in self.live.items():
            if start <= address and address + num_bytes <= start + memory.nbytes:
                return start
        raise AssertionError("outside of allocated memory")

    def close(self) -> None:
        self.closed = True


@dataclass
class HostProvider:
    """`Provider` on the CPU. Notes every run's graph id and bound addresses."""

    memory: str = "cpu"
    name: str = "CPUExecutionProvider"
    graph_ids: list[str] = field(default_factory=list)
    bound: list[dict[str, int]] = field(default_factory=list)

    def open(self, graph: bytes, weights: list[Weight], stream: int, *, use_graphs: bool) -> Any:
        assert stream == HostDevice.stream
        options = session_options(weights)
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(graph, options, providers=[self.name])
        return _Watched(session, self)


class _Binding:
    def __init__(self, binding: Any) -> None:
        self.binding, self.inputs, self.outputs = binding, {}, {}

    def bind_input(self, name: str, *rest: Any) -> None:
        self.inputs[name] = rest[-1]
        self.binding.bind_input(name, *rest)

    def bind_output(self, name: str, *rest: Any) -> None:
        self.outputs[name] = rest[-1]
        self.binding.bind_output(name, *rest)


class _Watched:
    def __init__(self, session: Any, provider: HostProvider) -> None:
        self.session, self.provider = session, provider

    def io_binding(self) -> _Binding:
        return _Binding(self.session.io_binding())

    def run_with_iobinding(self, binding: _Binding, options: Any) -> None:
        try:
            self.provider.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        except RuntimeError:
            self.provider.graph_ids.append("")
        self.provider.bound.append(binding.inputs | binding.outputs)
        self.session.run_with_iobinding(binding.binding, options)
