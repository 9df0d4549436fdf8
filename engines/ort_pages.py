"""The `Session` on ONNX Runtime's CPU provider with its cache in pages."""

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.precision import DType

from .base_session import BaseSession
from .ort_session import OrtSession
from .paged_session import PagedSession
from .session import CacheBlock, Logits, PageView, Tokens


class PagedOrtSession(PagedSession, OrtSession):
    """An `OrtSession` whose rows' tokens lie in pages.

    A step copies the pages of its rows together, runs the graph over these copies, and stores the
    new keys and values in their pages. So it is slower than rows, by the copy of what the rows
    hold; it shares prefixes, and takes memory by tokens.
    """

    longer = "Open the session with a larger max_seq_len and more pages."

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_batch: int,
        max_seq_len: int | None,
        threads: int | None,
        rounding: DType | None = None,
        page_tokens: int,
        num_pages: int,
    ) -> None:
        self._pools: dict[str, NDArray[Any]] = {}  # past name -> (pages, K, page, D)
        super().__init__(
            bundle, max_batch=max_batch, max_seq_len=max_seq_len, threads=threads, rounding=rounding
        )
        self.page_tokens, self.num_pages = page_tokens, num_pages
        shape = (num_pages, self.config.num_kv_heads, page_tokens, self.config.head_dim)
        for name, _ in contract.cache_names(self.config.num_layers):
            self._pools[name] = np.zeros(shape, self._cache_dtype)
        self._closing.callback(self._pools.clear)

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path,
        *,
        max_batch: int = 1,
        max_seq_len: int | None = None,
        threads: int | None = None,
        rounding: DType | None = None,
        page_tokens: int = 16,
        num_pages: int | None = None,
    ) -> Self:
        """Open a bundle; see `OrtSession.open`.

        Args:
            page_tokens: tokens a page.
            num_pages: pages of the cache; by default as many as all rows can fill.
        """
        bundle = Bundle.open(bundle)
        length = max_seq_len or bundle.config.max_position_embeddings
        return cls(
            bundle,
            max_batch=max_batch,
            max_seq_len=max_seq_len,
            threads=threads,
            rounding=rounding,
            page_tokens=page_tokens,
            num_pages=max_batch * -(-length // page_tokens) if num_pages is None else num_pages,
        )

    def copy_page(self, source: int, target: int) -> None:
        """See `Session.copy_page`."""
        self._require_open()
        with self._ownership:
            for pool in self._pools.values():
                pool[target] = pool[source]

    def _over(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, pages: PageView
    ) -> Logits:
        ends = write_indices + input_ids.shape[1]  # padding runs along
        if ends.max() > self.capacity:
            self._resize(int(ends.max()) + self.page_tokens)
        for name, pool in self._pools.items():
            for row, start in enumerate(write_indices):
                together = self._caches[name][row]
                together[:, :start] = self._held(pool, pages.table[row], int(start))
                together[:, start:] = 0
        logits = OrtSession._step(self, input_ids, write_indices, logit_indices, 0)
        for row, (start, end) in enumerate(zip(write_indices, pages.lengths, strict=True)):
            for name, pool in self._pools.items():
                new = self._caches[name][row, :, start:end]
                self._store(pool, pages.table[row], int(start), new)
        return logits

    def _held(self, pool: NDArray[Any], table: NDArray[np.int32], stop: int) -> NDArray[Any]:
        """(K, stop, D) what a row's pages hold."""
        pages = pool[table[: -(-stop // self.page_tokens)]]  # (pages, K, page, D)
        return pages.swapaxes(0, 1).reshape(pool.shape[1], -1, pool.shape[3])[:, :stop]

    def _store(
        self, pool: NDArray[Any], table: NDArray[np.int32], start: int, new: NDArray[Any]
    ) -> None:
        at = np.arange(start, start + new.shape[1])
        pool[table[at // self.page_tokens], :, at % self.page_tokens] = new.swapaxes(0, 1)

    def _read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        pool = self._pools[contract.past_name(layer, kind)]
        return self._held(pool, self._own(row, stop), stop)[:, start:].astype(np.float32)

    def _write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        pool = self._pools[contract.past_name(layer, kind)]
        self._store(pool, self._own(row, start + block.shape[1]), start, block)

    def _copy(self, layer: int, kind: str, source: int, target: int, length: int) -> None:
        BaseSession._copy(self, layer, kind, source, target, length)
