"""Which decode profiles run a span of rows: windows of a fixed number of neighbouring rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .profiles import buckets


@dataclass(frozen=True, slots=True)
class Window:
    """`rows` rows from `first` on, which one decode profile runs."""

    first: int
    rows: int

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.first + self.rows

    def halves(self) -> tuple["Window", ...]:
        """Its two parts, the first of them a power of two; none of a single row."""
        if self.rows == 1:
            return ()
        left = 1 << (self.rows - 1).bit_length() - 1
        return Window(self.first, left), Window(self.first + left, self.rows - left)


class Windows:
    """The windows over `max_batch` rows: all of them, and halves down to single rows.

    Args:
        weight_bytes: what every run reads.
        row_bytes: what a run reads for each of its rows; the fused kernel reads whole rows.
    """

    def __init__(self, max_batch: int, *, weight_bytes: int, row_bytes: int) -> None:
        self._whole = Window(0, max_batch)
        self._buckets = buckets(max_batch)
        self._weight_bytes, self._row_bytes = weight_bytes, row_bytes
        self.cover = lru_cache(1024)(self._cover)
        """`_cover`, remembered: it is asked in every step."""

    def __iter__(self) -> Iterator[Window]:
        """Every window; they number less than twice the rows."""
        pending = [self._whole]
        while pending:
            window = pending.pop()
            pending += window.halves()
            if window.rows in self._buckets:
                yield window

    def _cover(self, first: int, stop: int, full: frozenset[int]) -> tuple[Window, ...]:
        """The windows that run rows `first` to `stop` - 1 and read the fewest bytes.

        A window may have other rows too, which then run for nothing; but none that is `full`,
        because such a run writes a token behind those that a row holds.
        """
        _, windows = self._cheapest(self._whole, first, stop, full)
        return windows

    def _cheapest(
        self, window: Window, first: int, stop: int, full: frozenset[int]
    ) -> tuple[int, tuple[Window, ...]]:
        if window.stop <= first or stop <= window.first:
            return 0, ()
        options: list[tuple[int, tuple[Window, ...]]] = []
        beside = [row for row in full if not first <= row < stop]
        if window.rows in self._buckets and not any(
            window.first <= row < window.stop for row in beside
        ):
            options.append((self._weight_bytes + window.rows * self._row_bytes, (window,)))
        if halves := window.halves():
            parts = [self._cheapest(half, first, stop, full) for half in halves]
            options.append((sum(cost for cost, _ in parts), parts[0][1] + parts[1][1]))
        return min(options, key=lambda option: option[0])
