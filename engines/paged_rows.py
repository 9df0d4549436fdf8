"""Rows whose tokens lie in pages: prefixes are shared by reference, memory is taken by tokens."""

from collections.abc import Mapping, Sequence

import numpy as np

from nemo_trt.errors import RequestError

from .page_pool import ROOT, PagePool
from .rows import Rows, common_prefix
from .session import PageView, Session, Tokens

_LEAST_COPY = 32
"""Tokens for which a page is copied, or half a page if that is fewer: below, they are run again."""


class PagedRows(Rows):
    """Knows which pages each row's tokens lie in, and runs rows together.

    A row writes to pages of its own alone. A page that is full is indexed and written no more, so
    others may share it; it happens at the next step, when rejected drafts have been dropped. A row
    that is to go on within a page that it must not write to gets a copy of it first.

    Raises:
        RequestError: the pages do not hold one row of `max_seq_len` tokens.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        if session.page_tokens is None:
            raise RequestError("The session must have pages.")
        self.pool = PagePool(session.num_pages, session.page_tokens)
        width = self.pool.num_pages_of(session.max_seq_len)
        if width > session.num_pages:
            raise RequestError(
                f"The cache must hold one row of max_seq_len, {session.max_seq_len} tokens, in "
                f"{width} pages, got {session.num_pages}. Open it with more pages, or with a "
                "smaller max_seq_len."
            )
        rows = session.max_batch
        self._pages: list[list[int]] = [[] for _ in range(rows)]
        self._last: list[list[int]] = [[] for _ in range(rows)]  # what a free row had
        self._fixed = [0] * rows  # leading pages that a row must not write to
        self._table = np.zeros((rows, width), np.int32)

    @property
    def num_held_tokens(self) -> int:
        """Tokens of all pages that are held or kept. See `Rows.num_held_tokens`."""
        return (self.pool.num_held + self.pool.num_kept) * self.pool.page_tokens

    def num_pages(self, row: int) -> int:
        """Pages that a row holds."""
        return len(self._pages[row])

    def rewind(self, row: int, length: int = 0) -> None:
        """Drop a row's tokens from `length` on, and its pages behind them. See `Rows.rewind`."""
        if length == len(self._held[self._checked(row)]):
            return
        super().rewind(row, length)
        pages, keep = self._pages[row], self.pool.num_pages_of(length)
        self.pool.release(pages[keep:])
        del pages[keep:]
        self._fixed[row] = min(self._fixed[row], keep)
        if length % self.pool.page_tokens and self.pool.holders(pages[-1]) > 1:
            self._fixed[row] = keep  # who shares it may read what would be overwritten

    def copy(self, source: int, target: int, length: int) -> None:
        """Share the pages of the first `length` tokens. See `Rows.copy`."""
        tokens = self._held[self._checked(source)]
        if not 0 <= length <= len(tokens):
            raise RequestError(f"length must be 0 to {len(tokens)} for row {source}, got {length}.")
        self.finish(self._checked(target))
        self._settle(source)
        self.adopt(target, tokens[:length], self._pages[source][: self.pool.num_pages_of(length)])

    def clear(self, row: int) -> None:
        """Drop a row's tokens, which nobody may find: they may be NaN. Nothing is written."""
        self.finish(self._checked(row), tainted=True)

    def match(self, prompt: list[int]) -> tuple[list[int], int]:
        """The pages of the longest prefix of a prompt but for its last token, and its length."""
        for row in range(len(self._pages)):
            self._settle(row)
        tokens, size = prompt[:-1], self.pool.page_tokens
        pages, length = self.pool.find(tokens)
        whole = length // size
        wanted = [*tokens[whole * size : (whole + 1) * size], -1]
        for row, theirs in enumerate(self._pages):  # pages that are being filled are not indexed
            if len(theirs) <= whole or self._fixed[row] > whole:
                continue
            if whole and theirs[whole - 1] != pages[whole - 1]:
                continue
            shared = common_prefix(self._held[row][whole * size : (whole + 1) * size], wanted)
            if whole * size + shared > length:
                pages, length = [*pages[:whole], theirs[whole]], whole * size + shared
        partial = length % size
        if partial and partial < min(_LEAST_COPY, size // 2):
            page = pages[-1]
            if self.pool.holders(page) or self.pool.loses(page, partial):
                return pages[:-1], length - partial
        return pages, length

    def adopt(self, row: int, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Let an empty row share pages that hold some tokens."""
        assert not self._pages[row] and not self._held[row], "the row is empty"
        self.pool.share(pages)
        self._held[row], self._pages[row] = list(tokens), list(pages)
        self._table[row, : len(pages)] = pages
        self._fixed[row] = len(pages)

    def finish(self, row: int, *, tainted: bool = False) -> None:
        """Empty a row. Its pages are kept for prompts that begin like it.

        Args:
            tainted: they may hold what is not finite; nobody may find them.
        """
        pages = self._pages[row]
        if tainted:
            for page in pages:
                self.pool.forget(page)
        else:
            self._settle(row, whole=False)
        self.pool.release(pages)
        self._last[row], self._pages[row], self._held[row] = pages, [], []
        self._fixed[row] = 0

    def taint(self, row: int) -> None:
        """A step failed that a row was in until it was emptied: nobody may find what it had."""
        for page in self._last[row]:
            self.pool.forget(page)

    def spans(self, rows: Mapping[int, Sequence[int]]) -> list[dict[int, Sequence[int]]]:
        """All of `rows` run in one step: rows between them are left out. See `Rows.spans`."""
        return [dict(rows)]

    def _settle(self, row: int, *, whole: bool = True) -> None:
        """Index pages that are full, or all of them; take those that are known for one's own."""
        held, pages, size = self._held[row], self._pages[row], self.pool.page_tokens
        stop = len(held) // size if whole else len(pages)
        for at in range(self._fixed[row], stop):
            page, tokens = pages[at], held[at * size : (at + 1) * size]
            if not tokens:  # taken for a step that did not come
                break
            known = self.pool.insert(page, pages[at - 1] if at else ROOT, tokens)
            if known != page:
                self.pool.share([known])
                self.pool.release([page])
                pages[at] = self._table[row, at] = known
            self._fixed[row] = at + 1

    def _make_room(self, span: Mapping[int, Sequence[int]]) -> None:
        size = self.pool.page_tokens
        for row, tokens in span.items():
            length, pages = len(self._held[row]), self._pages[row]
            if self._fixed[row] != length // size:
                self._settle(row)
                if self._fixed[row] > length // size:
                    self._own_last(row)
            while len(pages) * size < length + len(tokens):
                pages.append(self.pool.take())
                self._table[row, len(pages) - 1] = pages[-1]

    def _own_last(self, row: int) -> None:
        """Give a row a last page of its own, with what the shared one holds of its tokens."""
        at, used = divmod(len(self._held[row]), self.pool.page_tokens)
        page = self._pages[row][at]
        if self.pool.loses(page, used) and (self.pool.num_available or self.pool.holders(page) > 1):
            own = self.pool.take()
            try:
                self._session.copy_page(page, own)
            except BaseException:
                self.pool.release([own])
                raise
            self.pool.release([page])
            self._pages[row][at] = self._table[row, at] = own
        else:  # nobody else holds it, and it is worth less than going on
            self.pool.forget(page)
        self._fixed[row] = at

    def _has_room(self, ends: Mapping[int, int]) -> bool:
        """Take the pages that are missing; False where there are none."""
        for row, end in ends.items():
            pages = self._pages[row]
            while len(pages) * self.pool.page_tokens < end:
                if not self.pool.num_available:
                    return False
                pages.append(self.pool.take())
                self._table[row, len(pages) - 1] = pages[-1]
        return True

    def _together(self, rows: Sequence[int]) -> Sequence[int]:
        return list(rows)

    def _run_again(self, ends: Tokens) -> Tokens:
        return np.zeros_like(ends)

    def _pages_of(self, span: Sequence[int], ends: Tokens) -> PageView:
        width = self.pool.num_pages_of(int(ends.max()))
        return PageView(self._table[list(span), :width], ends.astype(np.int32))


def rows_of(session: Session) -> Rows:
    """The rows of a session, with pages or without."""
    return Rows(session) if session.page_tokens is None else PagedRows(session)
