"""The cache of an engine with pages: pools of each layer's keys and values, and the page table."""

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import contract, e4m3
from nemo_trt.config import ModelConfig
from nemo_trt.engines.device import Device
from nemo_trt.engines.device_cache import narrowed, widened
from nemo_trt.engines.session import CacheBlock
from nemo_trt.engines.trt.engine_record import BuildOptions
from nemo_trt.engines.trt.runtime import Context
from nemo_trt.precision import DType

from .paged_attention import PagedAttention
from .place import PAGE_TABLE

Pages = NDArray[np.int32]


class PagedCache:
    """(pages, K, page, D) for every past name, zeroed, and a table of (B, row pages) int32.

    Addresses never change, so a graph may hold them.

    Args:
        paged: the engine's attention.
        num_pages: of the pool.

    Raises:
        MachineError: the device has not enough memory.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        options: BuildOptions,
        paged: PagedAttention,
        num_pages: int,
    ) -> None:
        self._device, self._page = device, options.page
        self._dtypes, self._scales = paged.caches, paged.scales
        self._shape = (num_pages, config.num_kv_heads, options.page, config.head_dim)
        self._block_numbers = int(np.prod(self._shape[1:]))
        self._names = list(contract.cache_names(config.num_layers))
        self._addresses: dict[str, int] = {}
        self._table = np.zeros((options.max_batch, options.row_pages), np.int32)
        self._closing = ExitStack()
        try:
            for past, _ in self._names:
                self._addresses[past] = self._memory(num_pages * self._block_bytes(past))
            self._table_address = self._memory(self._table.nbytes)
        except BaseException:
            self.close()
            raise

    def bind(self, context: Context, rows: int) -> None:
        """Bind the pools, and the table's first rows, and fix their shapes."""
        context.set_address(PAGE_TABLE, self._table_address)
        context.set_shape(PAGE_TABLE, (rows, self._table.shape[1]))
        for past, present in self._names:
            context.set_address(past, self._addresses[past])
            context.set_address(present, self._addresses[past])
            context.set_shape(past, self._shape)

    def show(self, table: Pages) -> None:
        """Put (B, M) pages into the first rows of the table, for the steps that follow."""
        rows, width = table.shape
        self._table[:rows, :width] = table
        self._device.upload(self._table_address, self._table[:rows])

    def read(self, layer: int, kind: str, pages: Pages, start: int, stop: int) -> CacheBlock:
        """Copy (K, stop - start, D) numbers of a row that has these pages to the host."""
        first, last = start // self._page, -(-stop // self._page)
        stored = np.empty((last - first, *self._shape[1:]), self._dtypes[layer].numpy_name)
        for held, page in zip(stored, pages[first:last], strict=True):
            self._device.download(held, self._address(layer, kind, page))
        tokens = np.moveaxis(stored, 1, 0).reshape(self._shape[1], -1, self._shape[3])
        before = first * self._page
        return self._numbers(layer, kind, tokens[:, start - before : stop - before])

    def write(self, layer: int, kind: str, pages: Pages, start: int, block: CacheBlock) -> None:
        """Copy a block from the host over tokens of a row that has these pages."""
        stop, stored = start + block.shape[1], self._stored(layer, kind, block)
        held = np.empty(self._shape[1:], self._dtypes[layer].numpy_name)
        for at in range(start // self._page, -(-stop // self._page)):
            first = at * self._page
            begin, end = max(start, first), min(stop, first + self._page)
            address = self._address(layer, kind, pages[at])
            if end - begin < self._page:
                self._device.download(held, address)
            held[:, begin - first : end - first] = stored[:, begin - start : end - start]
            self._device.upload(address, held)

    def copy(self, layer: int, kind: str, source: Pages, target: Pages, length: int) -> None:
        """Make the first tokens in the pages of `target` those in `source`, on the device."""
        token = self._shape[3] * self._dtypes[layer].itemsize
        for at in range(-(-length // self._page)):
            self._device.copy(
                self._address(layer, kind, target[at]),
                self._address(layer, kind, source[at]),
                min(self._page, length - at * self._page) * token,
                count=self._shape[1],
                pitch=self._page * token,
            )

    def copy_page(self, source: int, target: int) -> None:
        """Make a page hold what another one holds, in every layer, on the device."""
        for past, address in self._addresses.items():
            size = self._block_bytes(past)
            self._device.copy(
                address + target * size, address + source * size, size, count=1, pitch=size
            )

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._closing.close()

    def _memory(self, num_bytes: int) -> int:
        address = self._device.allocate(num_bytes)
        self._closing.callback(self._device.free, address)
        return address

    def _block_bytes(self, past: str) -> int:
        return self._block_numbers * self._dtypes[contract.layer_of(past)].itemsize

    def _address(self, layer: int, kind: str, page: int) -> int:
        past = contract.past_name(layer, kind)
        return self._addresses[past] + int(page) * self._block_bytes(past)

    def _numbers(self, layer: int, kind: str, stored: NDArray[Any]) -> CacheBlock:
        dtype = self._dtypes[layer]
        if dtype is DType.FP8:
            return e4m3.to_float32(stored, self._scale(layer, kind))
        return widened(stored, dtype)

    def _stored(self, layer: int, kind: str, block: CacheBlock) -> NDArray[Any]:
        dtype = self._dtypes[layer]
        if dtype is DType.FP8:
            return e4m3.from_float32(block.astype(np.float32), self._scale(layer, kind))
        return narrowed(block, dtype)

    def _scale(self, layer: int, kind: str) -> float:
        found = self._scales[layer]
        assert found is not None, "an FP8 layer has scales"
        return found[kind == "value"]
