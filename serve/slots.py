"""Which row a prompt gets: the one that its beginning is in, or another that is free."""

from collections import deque

from nemo_trt.engines.rows import Rows, common_prefix

MIN_COPY = 32
"""Tokens of a prefix below which copying it is not worth a look."""
_WINDOW = 8
"""Rows whose steps cost about as much as one row's: their order is that of their last use."""


class Slots:
    """The free rows of a session, and what all rows hold.

    Low rows are given out first, so that a step has to cover few of them; of those that cost no
    more, the one that was used longest ago, so that what others hold stays.
    """

    preempts = False

    def __init__(self, rows: Rows, num_rows: int) -> None:
        self._rows, self._num_rows = rows, num_rows
        self._free = deque(range(num_rows))  # the one that was used longest ago first
        self._tainted: set[int] = set()

    @property
    def num_free(self) -> int:
        """Rows that nobody has."""
        return len(self._free)

    def take(self, prompt: list[int], *, shared: bool = True) -> tuple[int, int] | None:
        """Take a free row, with the longest beginning of a prompt that any row holds; also say how
        many tokens that is.

        Args:
            shared: without it the row holds nothing.
        """
        if shared:
            row, source, length = self._place(prompt)
        else:
            row = source = self._next_free()
            length = 0
        if row == source:
            self._rows.rewind(row, length)
        else:
            self._rows.copy(source, row, length)
        self._free.remove(row)
        return row, length

    def share(self, row: int, prompt: list[int]) -> int:
        """Bring what another row holds of a prompt to a row that was taken; tokens it holds now."""
        own = len(self._rows.held(row))
        shared = [common_prefix(self._rows.held(other), prompt) for other in range(self._num_rows)]
        source = max(range(self._num_rows), key=shared.__getitem__)
        if source == row or shared[source] < own + MIN_COPY:
            return own
        self._rows.copy(source, row, shared[source])
        return shared[source]

    def give_back(self, row: int, *, tainted: bool = False) -> None:
        """A row is free; `tainted` where it may hold what is not finite."""
        self._free.append(row)
        if tainted:
            self.taint(row)

    def taint(self, row: int) -> None:
        """What a free row holds is not to be trusted."""
        self._rows.rewind(row)
        self._tainted.add(row)

    def clean(self) -> None:
        """Clear what is tainted; not while a step runs."""
        for row in self._tainted:
            self._rows.clear(row)
        self._tainted.clear()

    def _next_free(self) -> int:
        busy = self._num_rows - len(self._free)
        window = max(_WINDOW, 1 << busy.bit_length())
        return next((row for row in self._free if row < window), min(self._free))

    def _place(self, prompt: list[int]) -> tuple[int, int, int]:
        """A free row for a prompt, the row that its beginning is in, and how long that is."""
        every = range(self._num_rows)
        shared = [common_prefix(self._rows.held(row), prompt) for row in every]
        other = self._next_free()
        row = max(self._free, key=shared.__getitem__)
        source = max(every, key=shared.__getitem__)
        if shared[source] >= shared[row] + MIN_COPY:
            return other, source, shared[source]
        if shared[row] and 2 * shared[row] >= len(self._rows.held(row)):
            return row, row, shared[row]
        if shared[row] >= MIN_COPY:  # leave what lies behind the beginning to others
            return other, row, shared[row]
        return other, other, shared[other]
