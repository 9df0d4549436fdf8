"""The cache of an engine with pages: one pool for each layer's keys and values, and the page table.

Each row has pages of its own for `max_seq_len` tokens, one after the other.
"""

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16, contract
from nemo_trt.config import ModelConfig
from nemo_trt.engines.device import Device
from nemo_trt.engines.session import CacheBlock
from nemo_trt.engines.trt.record import BuildOptions
from nemo_trt.engines.trt.runtime import Context
from nemo_trt.precision import DType

from .place import PAGE_TABLE


class PagedCache:
    """(pages, K, page, D) for every past name, zeroed, and (B, row pages) int32.

    Addresses never change, so a graph may hold them.

    Raises:
        MachineError: the device has not enough memory.
    """

    def __init__(
        self, device: Device, config: ModelConfig, dtype: DType, options: BuildOptions
    ) -> None:
        self._device, self._dtype, self._page = device, dtype, options.page
        self._per_row, self._table_width = (
            -(-options.max_seq_len // options.page),
            options.row_pages,
        )
        self._shape = (
            options.max_batch * self._per_row, config.num_kv_heads, options.page, config.head_dim
        )  # fmt: skip
        self._block_bytes = int(np.prod(self._shape[1:])) * dtype.itemsize
        self._names = list(contract.cache_names(config.num_layers))
        self._addresses: dict[str, int] = {}
        self._closing = ExitStack()
        try:
            for past, _ in self._names:
                self._addresses[past] = self._memory(self._shape[0] * self._block_bytes)
            table = np.zeros((options.max_batch, self._table_width), np.int32)
            table[:, : self._per_row] = np.arange(self._shape[0]).reshape(options.max_batch, -1)
            self._table = self._memory(table.nbytes)
            device.upload(self._table, table)
        except BaseException:
            self.close()
            raise

    def bind(self, context: Context, first_row: int, rows: int | None) -> None:
        """Bind the pools and the table from `first_row` on; fix their shapes for `rows`, if any."""
        context.set_address(PAGE_TABLE, self._table + first_row * self._table_width * 4)
        if rows is None:
            return
        context.set_shape(PAGE_TABLE, (rows, self._table_width))
        for past, present in self._names:
            context.set_address(past, self._addresses[past])
            context.set_address(present, self._addresses[past])
            context.set_shape(past, self._shape)

    def read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        """Copy a block to the host. See `Session.read_cache`."""
        pages = range(start // self._page, -(-stop // self._page))
        stored = np.empty((len(pages), *self._shape[1:]), self._dtype.numpy_name)
        for held, page in zip(stored, pages, strict=True):
            self._device.download(held, self._address(layer, kind, row, page))
        first = pages.start * self._page
        tokens = np.moveaxis(stored, 1, 0).reshape(self._shape[1], -1, self._shape[3])
        return self._numbers(tokens[:, start - first : stop - first])

    def write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        """Copy a block from the host. See `Session.write_cache`."""
        stop = start + block.shape[1]
        stored = self._stored(block)
        held = np.empty(self._shape[1:], self._dtype.numpy_name)
        for page in range(start // self._page, -(-stop // self._page)):
            first = page * self._page
            begin, end = max(start, first), min(stop, first + self._page)
            address = self._address(layer, kind, row, page)
            if end - begin < self._page:
                self._device.download(held, address)
            held[:, begin - first : end - first] = stored[:, begin - start : end - start]
            self._device.upload(address, held)

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._closing.close()

    def _memory(self, num_bytes: int) -> int:
        address = self._device.allocate(num_bytes)
        self._closing.callback(self._device.free, address)
        return address

    def _address(self, layer: int, kind: str, row: int, page: int) -> int:
        past = contract.past_name(layer, kind)
        return self._addresses[past] + (row * self._per_row + page) * self._block_bytes

    def _numbers(self, stored: NDArray[Any]) -> CacheBlock:
        if self._dtype is DType.BF16:
            return bfloat16.to_float32(np.ascontiguousarray(stored).view(np.uint16))
        return stored.astype(np.float32)

    def _stored(self, block: CacheBlock) -> NDArray[Any]:
        numbers: NDArray[Any] = block.astype(np.float32)
        if self._dtype is DType.BF16:
            numbers = bfloat16.from_float32(numbers)
        return numbers.astype(self._dtype.numpy_name)
