"""What a step found: candidates where a device picked them, and whole logits on demand."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .candidate_draw import draw_candidates
from .candidates import Candidates, Floats
from .draws import Draws
from .sampling import Sampled, Sampler

At = tuple[int, int]
"""Row of a step, counted from its first, and which of the row's N logit positions."""


class StepResult(Protocol):
    """The logits of one step; valid until the session's next one."""

    def logits(self, row: int, first: int, last: int) -> Floats:
        """(last - first, V) logits of some of a row's positions."""

    def candidates(self, at: Sequence[At]) -> Candidates | None:
        """The candidates of some positions; None where all logits lie in this process' memory."""


class WholeLogits:
    """A `StepResult` whose logits are all here: each row is sampled from all of its own."""

    def __init__(self, logits: Floats) -> None:
        self._logits = logits  # (B, N, V)

    def logits(self, row: int, first: int, last: int) -> Floats:
        """See `StepResult.logits`."""
        return self._logits[row, first:last]

    def candidates(self, at: Sequence[At]) -> Candidates | None:
        """None: picking candidates would cost what sampling costs."""
        return None


class Samples:
    """Tokens that were chosen at some positions of a step, or what went wrong there.

    Attributes:
        tokens: one for each position; of no meaning where there is an error.
        errors: by position, what `Sampler.sample` would raise there.
    """

    def __init__(self, result: StepResult, at: Sequence[At], draws: Draws) -> None:
        self.errors: dict[int, Exception] = {}
        self._whole: dict[int, Sampled] = {}
        candidates = result.candidates(at) if at else None
        self._drawn = draw_candidates(candidates, draws) if candidates is not None else None
        self.tokens = self._drawn.tokens if self._drawn else [0] * len(at)
        for index in self._drawn.undecided if self._drawn else range(len(at)):
            row, position = at[index]
            logits = result.logits(row, position, position + 1)[0]
            try:
                sampled = draws.samplers[index].choose(
                    logits, draws.masks[index], float(draws.uniforms[index])
                )
                self._whole[index], self.tokens[index] = sampled, sampled.token_id
            except Exception as error:  # one row's: the others have their tokens
                self.errors[index] = error

    def take(self, index: int) -> Sampled:
        """The token of a position, which its sampler remembers. Once for each; raises its error."""
        if index in self.errors:
            raise self.errors[index]
        if index in self._whole:
            return self._whole[index]
        assert self._drawn is not None
        return self._drawn.take(index)


def temperatures_of(samplers: Sequence[Sampler | None]) -> Floats:
    """(B,) what a device divides the logits by; 0 for rows that are greedy or not sampled."""
    return np.array([s.params.temperature if s else 0.0 for s in samplers], np.float32)
