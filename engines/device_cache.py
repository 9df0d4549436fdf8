"""The KV cache in a device's memory: one allocation for each layer's keys and values."""

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16, contract
from nemo_trt.config import ModelConfig
from nemo_trt.errors import CapacityError
from nemo_trt.precision import DType

from .device import Device
from .session import CacheBlock


def widened(stored: NDArray[Any], dtype: DType) -> CacheBlock:
    """Stored numbers of a 16- or 32-bit dtype as float32."""
    return bfloat16.to_float32(stored) if dtype is DType.BF16 else stored.astype(np.float32)


def narrowed(block: CacheBlock, dtype: DType) -> NDArray[Any]:
    """Numbers as a 16- or 32-bit dtype stores them, rounded once."""
    numbers: NDArray[Any] = block.astype(np.float32)
    if dtype is DType.BF16:
        return bfloat16.from_float32(numbers)
    return numbers.astype(dtype.numpy_name)


class DeviceCache:
    """(B, K, T, D) for every past name, zeroed: a masked NaN would still spread.

    Addresses never change, so a graph may hold them.

    Raises:
        MachineError: the device has not enough memory.
    """

    def __init__(
        self, device: Device, config: ModelConfig, dtype: DType, *, max_batch: int, capacity: int
    ) -> None:
        self._device, self._config, self._dtype, self._capacity = device, config, dtype, capacity
        self._row_bytes = config.num_kv_heads * capacity * config.head_dim * dtype.itemsize
        self._addresses: dict[str, int] = {}
        self._closing = ExitStack()
        try:
            for past, _ in contract.cache_names(config.num_layers):
                self._addresses[past] = device.allocate(max_batch * self._row_bytes)
                self._closing.callback(device.free, self._addresses[past])
        except BaseException:
            self.close()
            raise

    def address(self, past: str, row: int) -> int:
        """Where a row of a past input begins; the rows after it follow."""
        return self._addresses[past] + row * self._row_bytes

    def read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        """Copy a block to the host. See `Session.read_cache`."""
        heads, width = self._config.num_kv_heads, self._config.head_dim
        stored = np.empty((heads, stop - start, width), self._dtype.numpy_name)
        for head in range(heads):
            self._device.download(stored[head], self._head(layer, kind, row, head, start))
        return widened(stored, self._dtype)

    def write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        """Copy a block from the host. See `Session.write_cache`.

        Raises:
            CapacityError: it ends behind the row's end.
        """
        stop = start + block.shape[1]
        if stop > self._capacity:
            raise CapacityError(f"A block must end by token {self._capacity}, got {stop}.")
        stored = np.ascontiguousarray(narrowed(block, self._dtype))
        for head in range(self._config.num_kv_heads):
            self._device.upload(self._head(layer, kind, row, head, start), stored[head])

    def copy(self, layer: int, kind: str, source: int, target: int, length: int) -> None:
        """Make a row's first tokens those of another row, on the device."""
        token = self._config.head_dim * self._dtype.itemsize
        self._device.copy(
            self._head(layer, kind, target, 0, 0),
            self._head(layer, kind, source, 0, 0),
            length * token,
            count=self._config.num_kv_heads,
            pitch=self._capacity * token,
        )

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._closing.close()

    def _head(self, layer: int, kind: str, row: int, head: int, token: int) -> int:
        itemsize = self._config.head_dim * self._dtype.itemsize
        offset = (head * self._capacity + token) * itemsize
        return self.address(contract.past_name(layer, kind), row) + offset
