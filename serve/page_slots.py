"""Which pages a prompt gets: those that hold its prefix, and room for the rest of it."""

from nemo_trt.engines.paged_rows import PagedRows

_GROWTH = 16


class PageSlots:
    """The free rows of a session with pages. A free row holds nothing: what was in it is kept in
    the pool until its pages are needed, and prompts find it there.

    A prompt is let in when there are pages for all of it, for what is left of the prompts before
    it, and for each row to grow by a sixteenth: what is run again after a preemption has to be
    worth it. Answers then grow until the pool is full, and the youngest request gives its pages up.
    """

    preempts = True

    def __init__(self, rows: PagedRows, num_rows: int) -> None:
        self._rows, self._pool = rows, rows.pool
        self._free = list(range(num_rows - 1, -1, -1))
        self._prompts: dict[int, int] = {}  # tokens of each busy row's prompt
        self._refused: object = None  # to whom, and in which state

    @property
    def num_free(self) -> int:
        """Rows that nobody has."""
        return len(self._free)

    def take(self, prompt: list[int], *, shared: bool = True) -> tuple[int, int] | None:
        """Take a free row, with the longest prefix of a prompt that any page holds; also say how
        many tokens that is. None where there are not pages enough for it.

        Args:
            shared: without it the row holds nothing.
        """
        rests = [
            max(self._pool.num_pages_of(size + 1) - self._rows.num_pages(row), 0)
            for row, size in self._prompts.items()
        ]
        state = id(prompt), len(rests), sum(map(bool, rests))
        if state == self._refused:
            return None
        pages, length = self._rows.match(prompt) if shared else ([], 0)
        wanted = self._pool.num_pages_of(len(prompt) + 1) - length // self._pool.page_tokens
        kept = sum(not self._pool.holders(page) for page in pages)
        growth = sum(max(self._rows.num_pages(row) // _GROWTH, 1) for row in self._prompts)
        if rests and wanted + kept + sum(rests) + growth > self._pool.num_available:
            self._refused = state
            return None
        self._refused = None
        row = self._free.pop()
        self._rows.adopt(row, prompt[:length], pages)
        self._prompts[row] = len(prompt)
        return row, length

    def share(self, row: int, prompt: list[int]) -> int:
        """Bring what other rows hold of a prompt to a row that was taken; tokens it holds now."""
        pages, length = self._rows.match(prompt)
        if length > len(self._rows.held(row)):
            self._rows.finish(row)  # what it held that is in `pages` is indexed, and kept
            self._rows.adopt(row, prompt[:length], pages)
        return len(self._rows.held(row))

    def give_back(self, row: int, *, tainted: bool = False) -> None:
        """A row is free; `tainted` where it may hold what is not finite."""
        self._rows.finish(row, tainted=tainted)
        self._free.append(row)
        del self._prompts[row]

    def taint(self, row: int) -> None:
        """What a free row held is not to be trusted."""
        self._rows.taint(row)

    def clean(self) -> None:
        """Nothing: a page that is not indexed is written before it is read."""
