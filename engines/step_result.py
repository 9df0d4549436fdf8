"""What a step found: candidates where a device picked them, and whole logits on demand."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .candidate_draw import Mask, sample_candidates
from .candidates import Candidates, Floats
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


def sample_rows(
    result: StepResult, at: Sequence[At], samplers: Sequence[Sampler], masks: Sequence[Mask]
) -> list[Sampled | Exception]:
    """Sample one token at each of some positions, all at once where there are candidates.

    Args:
        samplers, masks: one for each position; see `sample_candidates`.

    Returns:
        A token each, or the error that `Sampler.sample` would raise there.
    """
    found: list[Sampled | Exception | None] = [None] * len(at)
    uniforms = [sampler.uniform() for sampler in samplers]
    candidates = result.candidates(at)
    if candidates is not None:
        found[:] = sample_candidates(candidates, samplers, masks, uniforms)
    for index, sampled in enumerate(found):
        if sampled is None:
            row, position = at[index]
            logits = result.logits(row, position, position + 1)[0]
            try:
                found[index] = samplers[index].choose(logits, masks[index], uniforms[index])
            except Exception as error:  # one row's: the others have their tokens
                found[index] = error
    return [one for one in found if one is not None]


def temperatures_of(samplers: Sequence[Sampler | None]) -> Floats:
    """(B,) what a device divides the logits by; 0 for rows that are greedy or not sampled."""
    return np.array([s.params.temperature if s else 0.0 for s in samplers], np.float32)
