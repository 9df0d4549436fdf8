"""Rows of tokens over a session's cache: append, read on, rewind, copy."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nemo_trt.errors import CapacityError, RequestError

from .session import Logits, Session, Tokens
from .step_result import At, StepResult

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
        self._session.copy_cache(source, target, length)
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

    @property
    def num_held_tokens(self) -> int:
        """Tokens that the cache holds, those of finished requests included."""
        return sum(map(len, self._held))

    def spans(self, rows: Mapping[int, Sequence[int]]) -> list[dict[int, Sequence[int]]]:
        """The parts of `rows` that run in one step each. Between them may lie idle rows, which cost
        little in short steps and much in long ones."""
        width = max(rows) - min(rows) + 1
        if len(rows) == width or max(map(len, rows.values())) <= _SHORT:
            return [dict(rows)]
        return [{row: rows[row]} for row in rows]

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
        for span in self.spans(rows):
            self._make_room(span)

    def longest(self, rows: Mapping[int, Sequence[int]]) -> int:
        """The row that needs most room when `append` is given `rows`; it may be one beside them."""
        span = max(self.spans(rows), key=self._room)
        return max(range(min(span), max(span) + 1), key=lambda row: len(self._held[row]))

    def _room(self, span: Mapping[int, Sequence[int]]) -> int:
        """Tokens a row that the cache holds behind a step of a span; padding counts."""
        held = max(len(self._held[row]) for row in range(min(span), max(span) + 1))
        return min(held + max(map(len, span.values())), self._session.max_seq_len)

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
        for span in self.spans(rows):
            step = self.launch(span, num_logits=num_logits)
            step.collect()
            for row, tokens in span.items():
                yield row, step.logits(row, 0, min(num_logits, len(tokens)))

    def launch(
        self,
        rows: Mapping[int, Sequence[int]],
        *,
        num_logits: int = 1,
        temperatures: Mapping[int, float] | None = None,
    ) -> "Step":
        """Start one step of one span; see `append`. Nothing else may run until it is collected.

        A row writes as many tokens as the longest. Where it has no room for padding, its own last
        tokens run once more: the cache holds what it held.

        Args:
            temperatures: what rows sample with; greedy where it is not said.
        """
        span = self._together(rows)
        index = {row: at for at, row in enumerate(span)}
        new_tokens = max(map(len, rows.values()))
        wanted = min(num_logits, new_tokens)
        lengths = np.array([len(self._held[row]) for row in span], np.int64)
        again = self._run_again(lengths + new_tokens)
        input_ids = np.zeros((len(span), new_tokens), np.int64)
        logit_indices = np.zeros((len(span), wanted), np.int64)
        if new_tokens == 1:
            for row, tokens in rows.items():
                input_ids[index[row], 0] = tokens[0]
            for at in np.flatnonzero(again):
                input_ids[at, 0] = self._held[span[at]][-1]
        else:
            for at, row in enumerate(span):
                repeated = self._held[row][lengths[at] - again[at] :] if again[at] else []
                tokens = [*repeated, *rows.get(row, ())]
                input_ids[at, : len(tokens)] = tokens
                logit_indices[at] = np.arange(len(tokens) - wanted, len(tokens)).clip(0)
        self._make_room(rows)
        degrees = None
        if temperatures:
            degrees = np.array([temperatures.get(row, 0.0) for row in span], np.float32)
        self._run(rows, input_ids, lengths - again, logit_indices, degrees)
        held = {row: self._held[row] for row in rows}
        return Step(self._session, held, rows, index, wanted)

    def _make_room(self, span: Mapping[int, Sequence[int]]) -> None:
        self._session.bind(self._room(span))

    def _together(self, rows: Mapping[int, Sequence[int]]) -> Sequence[int]:
        """The rows of the step that runs `rows`, in order."""
        return range(min(rows), max(rows) + 1)

    def _run_again(self, ends: Tokens) -> Tokens:
        """(B,) tokens that a row runs once more so that none writes behind the cache's end."""
        return np.maximum(ends - self._session.max_seq_len, 0)

    def _run(
        self,
        rows: Mapping[int, Sequence[int]],
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        temperatures: Logits | None,
    ) -> None:
        first = min(rows)
        self._session.launch(input_ids, write_indices, logit_indices, first, temperatures)

    def _checked(self, row: int) -> int:
        if not 0 <= row < self._session.max_batch:
            raise RequestError(f"row must be 0 to {self._session.max_batch - 1}, got {row}.")
        return row


class Step:
    """One step that was launched over some rows.

    Args:
        held: what the rows hold before the step.
        rows: what they run.
        index: where each row stands in the step.
        wanted: logit positions of each row.
    """

    def __init__(
        self,
        session: Session,
        held: Mapping[int, list[int]],
        rows: Mapping[int, Sequence[int]],
        index: Mapping[int, int],
        wanted: int,
    ) -> None:
        self._session, self._held, self._rows, self._index = session, held, rows, index
        self._starts = {row: len(tokens) for row, tokens in held.items()}
        self._wanted = wanted
        self.result: StepResult | None = None

    def collect(self) -> StepResult:
        """Wait for the step; its rows hold their tokens then, but for rows that were rewound."""
        self.result = self._session.collect()
        for row, tokens in self._rows.items():
            held = self._held[row]
            if len(held) == self._starts[row]:
                held.extend(tokens)
        return self.result

    def num_logits(self, row: int) -> int:
        """Of a row's tokens, counted from the last, those that got logits."""
        return min(self._wanted, len(self._rows[row]))

    def at(self, row: int, position: int) -> At:
        """Where the result has the `position`-th of a row's tokens that got logits."""
        return self._index[row], self._wanted - self.num_logits(row) + position

    def logits(self, row: int, first: int, last: int) -> Logits:
        """(last - first, V) logits of some of a row's positions, counted likewise."""
        assert self.result is not None
        index, start = self.at(row, first)
        return self.result.logits(index, start, start + last - first)


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
