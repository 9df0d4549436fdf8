"""Holds back text that could still become a stop string, and ends at the first that does."""

from collections.abc import Sequence


class StopStrings:
    """Receives pieces of text and gives back what may be shown.

    The match that ends first counts (of those the one that starts first), however the text is cut
    into pieces. A stop string itself is never shown.

    Attributes:
        found: the stop string that ended the text.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Take a piece; return what may be shown now. After a match nothing more is shown."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        matches = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        if matches:
            _, start, self.found = min(matches)
            return self._release(start)
        return self._release(len(self._held) - self._open_length())

    def flush(self) -> str:
        """The text has ended: return what was held back, unless a stop string ended it."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _open_length(self) -> int:
        """Characters at the end that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
