"""The pages of a KV cache: who holds them, what they hold, and which are kept for later prompts."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_trt.errors import CapacityError, RequestError

ROOT = -1
"""The parent of a sequence's first page."""


def own_pages(
    row: int, tokens: int, *, max_batch: int, page_tokens: int, num_pages: int
) -> NDArray[np.int32]:
    """The pages of a row's first tokens, for a caller who says nothing of pages: no other row's.

    Raises:
        CapacityError: there are not enough for as many tokens in every row.
    """
    last = -(-tokens // page_tokens) * max_batch
    if last > num_pages:
        raise CapacityError(
            f"{max_batch} rows of {tokens} tokens must have {last} pages, got {num_pages}. "
            "Open the session with more."
        )
    return np.arange(row, last, max_batch, dtype=np.int32)


class PagePool:
    """Counts the holders of each page, and indexes pages by what they hold. No memory is touched.

    A page is *held*, by one row or by several that share it; *kept*, which nobody holds and the
    index knows; or *free*. A page that is needed is a free one, or the one that has been kept
    longest.

    The prefix index is a tree: below each page stand those that go on where it ends, so that a
    page's place says all tokens up to its end. Only a leaf can hold fewer tokens than a page.
    Whoever holds an indexed page holds its ancestors too, and gives them up later than the page
    itself (`release`): the page that was kept longest is always a leaf.

    Args:
        num_pages: pages of the cache, numbered from 0.
        page_tokens: tokens a page.

    Raises:
        RequestError: a number is below 1.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        if num_pages < 1 or page_tokens < 1:
            raise RequestError(
                f"num_pages and page_tokens must be 1 or more, got {num_pages} and {page_tokens}."
            )
        self.num_pages, self.page_tokens = num_pages, page_tokens
        self._holders = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # the one kept longest first
        self._entries: dict[int, tuple[int, tuple[int, ...]]] = {}  # page -> parent, its tokens
        self._below: dict[int, list[tuple[tuple[int, ...], int]]] = {}  # parent -> sorted entries

    @property
    def num_held(self) -> int:
        """Pages that rows hold."""
        return self.num_pages - len(self._free) - len(self._kept)

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_kept(self) -> int:
        """Pages that nobody holds and that a prompt may find."""
        return len(self._kept)

    @property
    def num_available(self) -> int:
        """Pages that can be taken: free ones and kept ones."""
        return len(self._free) + len(self._kept)

    def num_pages_of(self, num_tokens: int) -> int:
        """Pages that so many tokens take."""
        return -(-num_tokens // self.page_tokens)

    def holders(self, page: int) -> int:
        """Rows that hold a page."""
        return self._holders[page]

    def take(self) -> int:
        """Hold a page that nobody else holds; what it contained is forgotten.

        Raises:
            CapacityError: every page is held.
        """
        if not self._free:
            if not self._kept:
                raise CapacityError(
                    f"The cache must have a free page, but all {self.num_pages} pages of "
                    f"{self.page_tokens} tokens are held. End a request, or open with more pages."
                )
            oldest, _ = self._kept.popitem(last=False)
            self._remove(oldest)
            self._free.append(oldest)
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def share(self, pages: Sequence[int]) -> None:
        """Hold pages that are held or kept already, as `find` returned them."""
        for page in pages:
            assert self._holders[page] or page in self._kept, "a free page is not shared"
            self._holders[page] += 1
            self._kept.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """Hold consecutive pages of a row no longer. Indexed ones are kept when nobody does."""
        for page in reversed(pages):  # a page is kept longer than its parent: leaves go first
            assert self._holders[page] > 0, "a page is released once by each holder"
            self._holders[page] -= 1
            if not self._holders[page]:
                if page in self._entries:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def find(self, tokens: Sequence[int]) -> tuple[list[int], int]:
        """The indexed pages that hold the longest prefix of `tokens`, and its length.

        The last page may hold more than that, and other tokens behind them.
        """
        pages: list[int] = []
        parent, length = ROOT, 0
        while below := self._below.get(parent):
            wanted = tuple(tokens[length : length + self.page_tokens])
            shared, page = max(_neighbours(below, wanted))
            if not shared:
                break
            pages.append(page)
            length += shared
            if shared < self.page_tokens:
                break
            parent = page
        return pages, length

    def insert(self, page: int, parent: int, tokens: Sequence[int]) -> int:
        """Index a held page.

        Args:
            parent: the page before it, or `ROOT`. Where it is not indexed, nor will the page be.
            tokens: all tokens that the page holds, at most `page_tokens`.

        Returns:
            The page that the index has for them: another one where it knew them already.
        """
        assert self._holders[page] and page not in self._entries, "only a new page is indexed"
        if parent != ROOT and parent not in self._entries:
            return page
        key, below = tuple(tokens), self._below.setdefault(parent, [])
        at = bisect_left(below, (key, ROOT))
        if at < len(below) and below[at][0][: len(key)] == key:
            return below[at][1]
        below.insert(at, (key, page))
        self._entries[page] = parent, key
        return page

    def is_indexed(self, page: int) -> bool:
        """Whether prompts find a page."""
        return page in self._entries

    def loses(self, page: int, num_tokens: int) -> bool:
        """Whether anybody loses something if an only holder overwrites what lies behind the page's
        first `num_tokens` tokens."""
        if self._holders[page] > 1 or page in self._below:
            return True
        return page in self._entries and len(self._entries[page][1]) > num_tokens

    def forget(self, page: int) -> None:
        """Take a page and all below it out of the index. Their holders go on holding them."""
        rest = [page]
        while rest:
            page = rest.pop()
            rest += [below for _, below in self._below.get(page, ())]
            if page in self._entries:
                self._remove(page)
            if page in self._kept:
                del self._kept[page]
                self._free.append(page)

    def _remove(self, page: int) -> None:
        parent, key = self._entries.pop(page)
        below = self._below[parent]
        del below[bisect_left(below, (key, page))]
        if not below:
            del self._below[parent]


def _neighbours(
    below: list[tuple[tuple[int, ...], int]], wanted: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Shared length and page of the entries that stand next to `wanted` in order: no other shares
    a longer prefix with it."""
    at = bisect_left(below, (wanted, ROOT))
    found = []
    for key, page in below[max(at - 1, 0) : at + 1]:
        both = min(len(key), len(wanted))
        shared = both
        if key[:both] != wanted[:both]:
            shared = next(n for n in range(both) if key[n] != wanted[n])
        found.append((shared, page))
    return found
