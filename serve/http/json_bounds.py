"""Counts what a JSON text holds as it comes, so that no parser sees more than it can bear."""

import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 2**17 + 2**14
"""Entries of lists and objects: a context of 128k tokens, and as many more as everything else."""
MAX_TEXTS = 2**15
"""Strings, names of members among them."""
MAX_NAMED = 2**14
"""Objects, lists and members of objects, of which a Python object is made each."""
MAX_DEPTH = 100
_BLOCK = 2**16
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OPENS, _CLOSES, _COMMA, _COLON = np.frombuffer(b"[{", np.uint8), b"]}", ord(","), ord(":")


class JsonTooLarge(ValueError):
    """The text holds more than is allowed; the message says what."""


class JsonBounds:
    """Takes the bytes of a JSON text, and raises where they hold too much.

    It does not parse: whether the text is JSON at all is the parser's business. Between two of its
    quotes nothing counts. Time is a few nanoseconds a byte and memory some blocks, whatever comes.
    """

    def __init__(self) -> None:
        self._inside = np.uint8(0)  # 1 within a string
        self._backslashes = 0  # at the end of what came
        self._values = self._texts = self._named = self._depth = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            JsonTooLarge: there are too many values, or they lie too deep in each other.
        """
        for start in range(0, len(data), _BLOCK):
            self._feed(np.frombuffer(data[start : start + _BLOCK], np.uint8))

    def _feed(self, piece: NDArray[np.uint8]) -> None:
        quotes = piece == _QUOTE
        others = piece != _BACKSLASH
        if self._backslashes or not others.all():
            escaped = (quotes[0] and self._backslashes) or (quotes[1:] > others[:-1]).any()
            if escaped:
                quotes &= self._backslashes_before(others) & 1 == 0
            self._backslashes = self._backslashes_at_end(others)
        if quotes.any():
            inside = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ self._inside
            self._inside = inside[-1]
            self._count(piece[inside == 0])
        elif not self._inside:
            self._count(piece)

    def _backslashes_before(self, others: NDArray[np.bool_]) -> NDArray[np.int32]:
        """(n,) backslashes right before each byte; `others` says which bytes are none."""
        at = np.arange(len(others), dtype=np.int32)
        last = np.full_like(at, -self._backslashes)  # position behind the last other byte
        np.copyto(last[1:], at[1:], where=others[:-1])
        run: NDArray[np.int32] = at - np.maximum.accumulate(last, out=last)
        return run

    def _backslashes_at_end(self, others: NDArray[np.bool_]) -> int:
        """Backslashes that the text so far ends with: 1 where their number is odd, else 0."""
        run = int(others[::-1].argmax())
        if not others[-1 - run]:  # nothing else in this piece
            run = len(others) + self._backslashes
        return run % 2

    def _count(self, outside: NDArray[np.uint8]) -> None:
        opens = (outside == _OPENS[0]) | (outside == _OPENS[1])
        closes = (outside == _CLOSES[0]) | (outside == _CLOSES[1])
        num_opens, num_closes = np.count_nonzero(opens), np.count_nonzero(closes)
        self._named += int(num_opens + np.count_nonzero(outside == _COLON))
        self._values += int(num_opens + np.count_nonzero(outside == _COMMA))
        self._texts += int(np.count_nonzero(outside == _QUOTE))  # one that closes is outside
        if self._named > MAX_NAMED:
            raise JsonTooLarge(
                f"must hold at most {MAX_NAMED} objects, lists and members of objects."
            )
        if self._texts > MAX_TEXTS:
            raise JsonTooLarge(f"must hold at most {MAX_TEXTS} strings.")
        if self._values > MAX_VALUES:
            raise JsonTooLarge(f"must hold at most {MAX_VALUES} values.")
        if self._depth + num_opens > MAX_DEPTH:
            steps = opens.astype(np.int32) - closes
            deepest = int(steps.cumsum().max(initial=0))
            if self._depth + deepest > MAX_DEPTH:
                raise JsonTooLarge(f"must be nested at most {MAX_DEPTH} deep.")
        self._depth += int(num_opens - num_closes)


def require_bounded(text: str, name: str) -> None:
    """Check JSON that stands within a string of JSON.

    Raises:
        JsonTooLarge: see `JsonBounds`; the message begins with `name`.
    """
    if len(text) > _BLOCK // 16:  # what is shorter cannot hold much
        try:
            bounds = JsonBounds()
            for start in range(0, len(text), _BLOCK):
                bounds.feed(text[start : start + _BLOCK].encode("utf-8", "surrogatepass"))
        except JsonTooLarge as error:
            raise JsonTooLarge(f"{name} {error}") from None
