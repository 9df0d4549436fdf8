"""Log-probabilities of a prompt's own tokens, a bounded piece of logits at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_trt.engines.sampling import require_finite
from nemo_trt.engines.session import Logits

SCORED_TOKENS = 64
"""Positions whose logits are computed at once: 32 MiB of them for NeMo's vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """What the model thought of one token of the prompt.

    Attributes:
        logprob: natural logarithm of its probability.
        rank: 1 for the likeliest.
        top: the likeliest tokens, with theirs.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class PromptScores:
    """Collects the scores of one prompt. The first token has none: nothing precedes it.

    Args:
        top: alternatives to report for each token.

    Attributes:
        top: the same.
        scores: of the second token and those that follow it.
    """

    def __init__(self, top: int) -> None:
        self.scores: list[TokenScore] = []
        self.top = top

    def push(self, logits: Logits, following: Sequence[int]) -> None:
        """Take (n, V) logits and the tokens that follow their positions, n or one fewer.

        Raises:
            BundleError: logits are not finite.
        """
        for row, token in zip(logits, following, strict=False):
            self.scores.append(self._score(row, token))

    def _score(self, row: Logits, token: int) -> TokenScore:
        largest = require_finite(row)
        log_sum = largest + float(np.log(np.exp(row - largest).sum(dtype=np.float64)))
        top: tuple[tuple[int, float], ...] = ()
        if self.top:
            best = np.argpartition(row, -self.top)[-self.top :]
            best = best[np.lexsort((best, -row[best]))]
            top = tuple((int(at), float(row[at]) - log_sum) for at in best)
        return TokenScore(
            token_id=token,
            logprob=float(row[token]) - log_sum,
            rank=int((row > row[token]).sum()) + 1,
            top=top,
        )
