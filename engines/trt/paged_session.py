"""The `Session` on an engine with pages: its caller says which pages the rows of a step have."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from nemo_trt.engines.paged_session import PagedSession
from nemo_trt.engines.session import CacheBlock, Logits, PageView, StepInputs, Tokens
from nemo_trt.engines.step_result import StepResult
from nemo_trt.errors import MachineError

from .attention.cache import PagedCache
from .memory import GRAPH_BYTES
from .outputs import Run
from .profiles import buckets
from .runtime import Context
from .session import TensorRtSession
from .windows import Window

_SHARE = 0.95  # of what is left that pages take: CUDA keeps some for itself


class PagedTensorRtSession(PagedSession, TensorRtSession):
    """Runs an engine that was built with `--attention paged`.

    It has as many pages as the device has memory for, at most enough for all rows. A decode step
    runs the profile of the next larger number of rows, of which those that are too many are idle.
    """

    _cache: PagedCache  # type: ignore[assignment]  # what the base asks of it stands below
    longer = "Build the engine with a larger --max-seq-len."
    _first_length = 0  # idle: nothing is written

    def copy_page(self, source: int, target: int) -> None:
        """See `Session.copy_page`."""
        self._require_open()
        with self._ownership:
            self._cache.copy_page(source, target)

    def _open_cache(self) -> None:
        options, config = self.record.options, self.config
        paged = self.record.paged
        assert paged is not None, "the record is of an engine with pages"
        size = options.page * self.record.kv_bytes_per_token(config)
        row = -(-options.max_seq_len // options.page)
        graphs = GRAPH_BYTES * len(buckets(self.max_batch))  # which are made later
        fitting = int(_SHARE * (self._device.free_bytes() - graphs)) // size
        if fitting < row:
            raise MachineError(
                f"The cache must hold a row of {options.max_seq_len} tokens, {row} pages of "
                f"{size / 1e6:.1f} MB, but the GPU has memory for {fitting}. Build the engine with "
                "a smaller --max-seq-len."
            )
        self.page_tokens = options.page
        self.num_pages = min(fitting, options.max_batch * row)
        self._cache = PagedCache(self._device, config, options, paged, self.num_pages)

    def _decode_windows(self) -> Iterable[Window]:
        return [Window(0, rows) for rows in buckets(self.max_batch)]

    def _bind(self, context: Context, window: Window) -> None:
        self._cache.bind(context, window.rows)

    def _bind_prefill(self, row: int) -> None:
        self._cache.bind(self._prefiller, 1)

    def _over(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, pages: PageView
    ) -> Logits:
        return self._all_logits(input_ids, write_indices, logit_indices, 0, pages)

    def _start(self, step: StepInputs) -> Callable[[], StepResult]:
        if step.pages is None:
            pages = self._own_pages(step.input_ids, step.write_indices, step.first_row)
            step = replace(step, pages=pages)
        return super()._start(step)

    def _rows(
        self, input_ids: Tokens, write_indices: Tokens, first_row: int, pages: PageView | None
    ) -> Iterator[tuple[Tokens, int, int]]:
        assert pages is not None, "a step without pages was given those of its rows"
        for row, start in enumerate(write_indices.tolist()):
            self._cache.show(pages.table[[row]])
            yield input_ids[row, : int(pages.lengths[row]) - start], start, 0  # the rest is padding

    def _decode(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        temperatures: Logits,
        first_row: int,
        pages: PageView | None,
    ) -> Iterator[Run]:
        assert pages is not None, "a step without pages was given those of its rows"
        rows = len(input_ids)
        window = self._decoders.of_at_least(rows)
        tokens = np.zeros((window.rows, 1), np.int64)
        starts = np.zeros(window.rows, np.int64)
        lengths = np.zeros(window.rows, np.int32)  # of an idle row
        degrees = np.ones(window.rows, np.float32)
        tokens[:rows], starts[:rows], lengths[:rows] = input_ids, write_indices, pages.lengths
        degrees[:rows] = temperatures
        self._cache.show(pages.table)
        self._inputs.upload(tokens, starts, np.zeros_like(tokens), lengths, degrees)
        self._decoders.run(window)
        yield Run(0, 0, slice(0, rows))

    def _read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        return self._cache.read(layer, kind, self._own(row, stop), start, stop)

    def _write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        pages = self._own(row, start + block.shape[1])
        self._cache.write(layer, kind, pages, start, block)

    def _copy(self, layer: int, kind: str, source: int, target: int, length: int) -> None:
        own = self._own(source, length), self._own(target, length)
        self._cache.copy(layer, kind, *own, length)
