"""A step over some rows: prepared, launched, collected."""

from collections.abc import Mapping, Sequence

from .session import Logits, Session, StepInputs
from .step_result import At, StepResult


class PreparedStep:
    """A step of some rows that may be launched; where each runs one token, without the tokens.

    Args:
        held: by row, the tokens that it holds; changed when the step has been collected.
        starts: by row, how many these are when the step is launched.
        index: where each row stands in the step.
        wanted: logit positions of each row.
    """

    def __init__(
        self,
        session: Session,
        inputs: StepInputs,
        held: Mapping[int, list[int]],
        starts: Mapping[int, int],
        index: Mapping[int, int],
        wanted: int = 1,
    ) -> None:
        self._session, self._inputs = session, inputs
        self._held, self._starts, self._index, self._wanted = held, starts, index, wanted
        self._at = [index[row] for row in held]

    def launch(self, tokens: Sequence[int]) -> "Step":
        """Run one token of each row, in their order."""
        self._inputs.input_ids[self._at, 0] = tokens
        return self.launch_whole({row: [t] for row, t in zip(self._held, tokens, strict=True)})

    def launch_whole(self, rows: Mapping[int, Sequence[int]]) -> "Step":
        """Run what the inputs say, which are these tokens of the rows."""
        inputs = self._inputs
        self._session.launch(
            inputs.input_ids,
            inputs.write_indices,
            inputs.logit_indices,
            inputs.first_row,
            inputs.temperatures,
            inputs.pages,
        )
        return Step(self._session, self._held, self._starts, rows, self._index, self._wanted)


class Step:
    """One step that was launched over some rows.

    Args:
        held, starts, index, wanted: see `PreparedStep`.
        rows: what the rows run.

    Attributes:
        result: what the step found, once it has ended.
    """

    def __init__(
        self,
        session: Session,
        held: Mapping[int, list[int]],
        starts: Mapping[int, int],
        rows: Mapping[int, Sequence[int]],
        index: Mapping[int, int],
        wanted: int,
    ) -> None:
        self._session, self._held, self.rows, self._index = session, held, rows, index
        self._starts, self._wanted = starts, wanted
        self._settled = False
        self.result: StepResult | None = None

    def collect(self) -> StepResult:
        """Wait for the step; its rows hold their tokens then, but for rows that were rewound."""
        result = self.wait()
        self.settle()
        return result

    def wait(self) -> StepResult:
        """Wait for the step; `settle` is yet to be called."""
        self.result = self._session.collect()
        return self.result

    def settle(self) -> None:
        """Let the rows hold the tokens of the step, which has ended; a second call does nothing."""
        if self._settled:
            return
        self._settled = True
        for row, tokens in self.rows.items():
            held = self._held[row]
            if len(held) == self._starts[row]:
                held.extend(tokens)

    def adds(self, row: int) -> Sequence[int]:
        """The tokens that a row will hold besides when the step has been collected."""
        if self._settled or row not in self.rows or len(self._held[row]) != self._starts[row]:
            return ()
        return self.rows[row]

    def num_logits(self, row: int) -> int:
        """Of a row's tokens, counted from the last, those that got logits."""
        return min(self._wanted, len(self.rows[row]))

    def at(self, row: int, position: int) -> At:
        """Where the result has the `position`-th of a row's tokens that got logits."""
        return self._index[row], self._wanted - self.num_logits(row) + position

    def logits(self, row: int, first: int, last: int) -> Logits:
        """(last - first, V) logits of some of a row's positions, counted likewise."""
        assert self.result is not None
        index, start = self.at(row, first)
        return self.result.logits(index, start, start + last - first)
