"""What sessions with pages share: the checks of a step's pages, and rows for who names none."""

import numpy as np
from numpy.typing import NDArray

from nemo_trt.errors import CapacityError, RequestError

from .base_session import BaseSession
from .page_pool import own_pages
from .session import Logits, PageView, Tokens


class PagedSession(BaseSession):
    """Put before a session with rows, it makes one with pages of it.

    A subclass sets `page_tokens` and `num_pages`, and defines `_over`.
    """

    page_tokens: int

    def _step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        pages = self._own_pages(input_ids, write_indices, first_row)
        return self._over(input_ids, write_indices, logit_indices, pages)

    def _own_pages(self, input_ids: Tokens, write_indices: Tokens, first_row: int) -> PageView:
        """The pages of rows from `first_row` on, for a step whose caller names none."""
        lengths = (write_indices + input_ids.shape[1]).astype(np.int32)
        rows = range(first_row, first_row + len(input_ids))
        table = np.array([self._own(row, int(lengths.max())) for row in rows], np.int32)
        return PageView(table, lengths)

    def _own(self, row: int, length: int) -> NDArray[np.int32]:
        """The pages of a row's first tokens. See `own_pages`."""
        return own_pages(
            row, length, max_batch=self.max_batch, page_tokens=self.page_tokens,
            num_pages=self.num_pages,
        )  # fmt: skip

    def _require_pages(self, input_ids: Tokens, starts: Tokens, pages: PageView) -> None:
        """Check that a step touches pages of its rows alone.

        Raises:
            RequestError: it would touch others, or there are too many rows.
            CapacityError: a row would be too long.
        """
        rows = len(input_ids)
        if not 0 < rows == len(pages.table) == len(pages.lengths) <= self.max_batch:
            raise RequestError(f"A step must have 1 to {self.max_batch} rows, got {rows}.")
        longest = int(pages.lengths.max())
        if longest > self.max_seq_len or starts.min() < 0:
            raise CapacityError(
                f"A row must hold at most {self.max_seq_len} tokens, got {longest}. {self.longer}"
            )
        held = -(-pages.lengths // self.page_tokens)
        if held.max() > pages.table.shape[1]:
            raise RequestError("The page table must name a page for every token.")
        used = pages.table[np.arange(pages.table.shape[1]) < held[:, None]]
        if used.size and not 0 <= used.min() <= used.max() < self.num_pages:
            raise RequestError(f"Pages must be 0 to {self.num_pages - 1}.")
