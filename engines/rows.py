"""Rows of tokens over a session's cache: append, read on, rewind, copy."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nemo_trt.errors import CapacityError, RequestError

from .row_steps import PreparedStep, Step
from .session import Logits, PageView, Session, StepInputs, Tokens

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
    ) -> Step:
        """Start one step of one span; see `append`. Nothing else may run until it is collected.

        A row writes as many tokens as the longest. Where it has no room for padding, its own last
        tokens run once more: the cache holds what it held.

        Args:
            temperatures: what rows sample with; greedy where it is not said.
        """
        self._make_room(rows)
        if max(map(len, rows.values())) == 1:
            prepared = self._single(list(rows), None, temperatures)
            return prepared.launch([tokens[0] for tokens in rows.values()])
        span = self._together(list(rows))
        new_tokens = max(map(len, rows.values()))
        wanted = min(num_logits, new_tokens)
        lengths = np.array([len(self._held[row]) for row in span], np.int64)
        again = self._run_again(lengths + new_tokens)
        input_ids = np.zeros((len(span), new_tokens), np.int64)
        logit_indices = np.zeros((len(span), wanted), np.int64)
        for at, row in enumerate(span):
            repeated = self._held[row][lengths[at] - again[at] :] if again[at] else []
            tokens = [*repeated, *rows.get(row, ())]
            input_ids[at, : len(tokens)] = tokens
            logit_indices[at] = np.arange(len(tokens) - wanted, len(tokens)).clip(0)
        ends = lengths + np.array([len(rows.get(row, ())) for row in span], np.int64)
        inputs = StepInputs(
            input_ids,
            lengths - again,
            logit_indices,
            span[0],
            _degrees(span, temperatures),
            self._pages_of(span, ends),
        )
        prepared = self._prepared(rows, span, inputs, lengths.tolist(), wanted)
        return prepared.launch_whole(rows)

    def prepare(
        self, rows: Sequence[int], running: Step, temperatures: Mapping[int, float]
    ) -> PreparedStep | None:
        """The step behind one that runs: a token of each row, but for the tokens themselves.

        Args:
            rows: some of those that run; each has room for one token more.
            running: a step of one token a row.

        Returns:
            None where room in the cache has to be made first.
        """
        span = self._together(rows)
        ends = {row: len(self._held[row]) + len(running.adds(row)) + 1 for row in span}
        return self._single(rows, running, temperatures) if self._has_room(ends) else None

    def _single(
        self,
        rows: Sequence[int],
        running: Step | None,
        temperatures: Mapping[int, float] | None,
    ) -> PreparedStep:
        """A step of one token a row, behind what the rows hold and a running step adds."""
        span = self._together(rows)
        adds = [running.adds(row) if running else () for row in span]
        starts = [len(self._held[row]) + len(more) for row, more in zip(span, adds, strict=True)]
        lengths = np.array(starts, np.int64)
        again = self._run_again(lengths + 1)
        input_ids = np.zeros((len(span), 1), np.int64)
        for at in np.flatnonzero(again).tolist():
            input_ids[at, 0] = (adds[at] or self._held[span[at]])[-1]
        inputs = StepInputs(
            input_ids,
            lengths - again,
            np.zeros((len(span), 1), np.int64),
            span[0],
            _degrees(span, temperatures),
            self._pages_of(span, lengths + 1),
        )
        return self._prepared(rows, span, inputs, starts)

    def _make_room(self, span: Mapping[int, Sequence[int]]) -> None:
        self._session.bind(self._room(span))

    def _has_room(self, ends: Mapping[int, int]) -> bool:
        """Whether rows can hold so many tokens each, while a step runs."""
        return min(max(ends.values()), self._session.max_seq_len) <= self._session.capacity

    def _together(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows of the step that runs `rows`, in order."""
        return range(min(rows), max(rows) + 1)

    def _run_again(self, ends: Tokens) -> Tokens:
        """(B,) tokens that a row runs once more so that none writes behind the cache's end."""
        return np.maximum(ends - self._session.max_seq_len, 0)

    def _pages_of(self, span: Sequence[int], ends: Tokens) -> PageView | None:
        """Where the rows have their tokens, (B,) each behind the step; None without pages."""
        return None

    def _prepared(
        self,
        rows: Iterable[int],
        span: Sequence[int],
        inputs: StepInputs,
        starts: Sequence[int],
        wanted: int = 1,
    ) -> PreparedStep:
        index = {row: at for at, row in enumerate(span)}
        return PreparedStep(
            self._session,
            inputs,
            {row: self._held[row] for row in rows},
            {row: starts[index[row]] for row in rows},
            index,
            wanted,
        )

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


def _degrees(span: Sequence[int], temperatures: Mapping[int, float] | None) -> Logits | None:
    """(B,) what rows sample with, 0 where it is not said; None where nothing is."""
    if not temperatures:
        return None
    return np.array([temperatures.get(row, 0.0) for row in span], np.float32)
