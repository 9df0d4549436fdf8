"""Rows of tokens over a session's cache: append, read on, rewind, copy."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nemo_trt.errors import CapacityError, RequestError

from .session import Logits, Session

_BLOCK = 256
_SHORT = 8
"""New tokens a row up to which a step's time is the weights' reading: idle rows cost little."""


class Rows:
    """Knows which tokens each row of a session's cache holds, and runs rows together.

    Errors are raised before anything is written.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held: list[list[int]] = [[] for _ in range(session.max_batch)]

    def held(self, row: int) -> list[int]:
        """The tokens that a row's cache holds; not to be altered.

        Raises:
            RequestError: there is no such row.
        """
        return self._held[self._checked(row)]

    def rewind(self, row: int, length: int = 0) -> None:
        """Drop a row's tokens from `length` on. No memory moves.

        Raises:
            RequestError: `length` is not between 0 and what the row holds.
        """
        tokens = self._held[self._checked(row)]
        if not 0 <= length <= len(tokens):
            raise RequestError(f"length must be 0 to {len(tokens)} for row {row}, got {length}.")
        del tokens[length:]

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the first `length` tokens of `source`, keys and values copied.

        Raises:
            RequestError: a row does not exist, or `source` holds fewer tokens.
        """
        tokens = self._held[self._checked(source)]
        if not 0 <= length <= len(tokens):
            raise RequestError(f"length must be 0 to {len(tokens)} for row {source}, got {length}.")
        self._held[self._checked(target)] = []
        for layer in range(self._session.config.num_layers):
            for kind in ("key", "value"):
                block = self._session.read_cache(layer, kind, source, 0, length)
                self._session.write_cache(layer, kind, target, 0, block)
        self._held[target] = list(tokens[:length])

    def clear(self, row: int) -> None:
        """Drop a row's tokens and write zeros over its cache.

        A NaN in a cache outlives a rewind: masked attention multiplies it by zero, which is NaN.
        """
        self.rewind(row)
        config = self._session.config
        for start in range(0, self._session.capacity, _BLOCK):
            size = min(_BLOCK, self._session.capacity - start)
            block = np.zeros((config.num_kv_heads, size, config.head_dim), np.float32)
            for layer in range(config.num_layers):
                for kind in ("key", "value"):
                    self._session.write_cache(layer, kind, row, start, block)

    def spans(self, rows: Mapping[int, list[int]]) -> list[dict[int, list[int]]]:
        """The parts of `rows` that `append` runs in one step each."""
        return [{row: rows[row] for row in span if row in rows} for span in self._spans(rows)]

    def require_fit(self, rows: Mapping[int, Sequence[int]]) -> None:
        """Check what `append` would be given.

        Raises:
            CapacityError: a row would exceed `max_seq_len`.
            RequestError: a row or a token does not exist, or there is none.
        """
        if not rows:
            raise RequestError("At least one row must be given.")
        limit, vocab_size = self._session.max_seq_len, self._session.config.vocab_size
        for row, tokens in rows.items():
            length = len(self._held[self._checked(row)])
            if not len(tokens):
                raise RequestError(f"Row {row} must be given at least one token.")
            if length + len(tokens) > limit:
                raise CapacityError(
                    f"Row {row} must hold at most {limit} tokens, got "
                    f"{length} + {len(tokens)}. Rewind it, or open with a larger max_seq_len."
                )
            if min(tokens) < 0 or max(tokens) >= vocab_size:
                raise RequestError(
                    f"Tokens must be 0 to {vocab_size - 1}, got "
                    f"{min(tokens)} to {max(tokens)} in row {row}."
                )

    def reserve(self, rows: Mapping[int, Sequence[int]]) -> None:
        """Make room in the cache for what `append` would be given; what the rows hold stays.

        Raises:
            CapacityError, MachineError: there is no memory for it.
        """
        for span in self._spans(rows):
            self._session.bind(self._room(span, rows))

    def longest(self, rows: Mapping[int, Sequence[int]]) -> int:
        """The row that needs most room when `append` is given `rows`; it may be one beside them."""
        spans = self._spans(rows)
        span = max(spans, key=lambda span: self._room(span, rows))
        return max(span, key=lambda row: len(self._held[row]))

    def _room(self, span: range, rows: Mapping[int, Sequence[int]]) -> int:
        """Tokens a row that the cache holds behind a step of a span; padding counts."""
        held = max(len(self._held[row]) for row in span)
        return held + max(len(rows.get(row, ())) for row in span)

    def append(
        self, rows: Mapping[int, Sequence[int]], *, num_logits: int = 1
    ) -> Iterator[tuple[int, Logits]]:
        """Run one step for each span of neighbouring rows.

        Args:
            rows: row -> new tokens, which passed `require_fit`.
            num_logits: new tokens a row, counted from its last, that get logits.

        Yields:
            Row and (min(num_logits, its tokens), V) logits, valid until the next is asked for.
        """
        for span in self._spans(rows):
            new_tokens = max(len(rows.get(row, ())) for row in span)
            wanted = min(num_logits, new_tokens)
            input_ids = np.zeros((len(span), new_tokens), np.int64)
            logit_indices = np.zeros((len(span), wanted), np.int64)
            write_indices = np.array([len(self._held[row]) for row in span], np.int64)
            for index, row in enumerate(span):
                tokens = rows.get(row, ())
                input_ids[index, : len(tokens)] = tokens
                last = np.arange(len(tokens) - wanted, len(tokens))
                logit_indices[index] = np.maximum(last, 0)
            self._session.bind(self._room(span, rows))
            logits = self._session.step(input_ids, write_indices, logit_indices, span[0])
            for index, row in enumerate(span):
                if row in rows:
                    self._held[row].extend(rows[row])
                    yield row, logits[index, wanted - min(wanted, len(rows[row])) :]

    def _spans(self, rows: Mapping[int, Sequence[int]]) -> list[range]:
        """Ranges of rows to run together. Padding and idle rows are written past their end, so a
        row without room for that runs alone."""
        new_tokens = max(map(len, rows.values()))
        first, last = min(rows), max(rows)
        whole = range(first, last + 1)
        limit = self._session.max_seq_len
        fits = all(len(self._held[row]) + new_tokens <= limit for row in whole)
        if fits and (len(rows) == len(whole) or new_tokens <= _SHORT):
            return [whole]
        return [range(row, row + 1) for row in rows]

    def _checked(self, row: int) -> int:
        if not 0 <= row < self._session.max_batch:
            raise RequestError(f"row must be 0 to {self._session.max_batch - 1}, got {row}.")
        return row


def common_prefix(held: list[int], prompt: list[int]) -> int:
    """Tokens that both begin with, but for the prompt's last, whose logits are needed."""
    limit = min(len(held), len(prompt) - 1)
    start = 0
    while start < limit and held[start : start + _BLOCK] == prompt[start : start + _BLOCK]:
        start += _BLOCK  # slices are compared a hundred times as fast as single tokens
    for index in range(start, limit):
        if held[index] != prompt[index]:
            return index
    return limit
