"""One row's generation: sample a token, turn it into text that may be shown, know when to end."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nemo_trt.config import ModelConfig

from .end_tokens import end_tokens
from .sampling import Sampler, SamplingParams
from .session import Logits
from .stop_strings import StopStrings
from .tokenizers import Detokenizer, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated token.

    Attributes:
        row: which prompt it continues.
        token_id: the token; an end token counts, its text does not.
        text: what may be shown now. It may be empty, or the text of several tokens: half a
            character and what could become a stop string are held back.
        logprob: natural logarithm of the token's probability, when it was asked for.
        top_logprobs: the likeliest alternatives, when they were asked for.
        finish_reason: why the row ended, with its last event.
    """

    row: int
    token_id: int
    text: str
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None


class Constraint(Protocol):
    """What an answer may consist of: a grammar's state, which moves with its tokens."""

    @property
    def finished(self) -> bool:
        """Whether nothing but an end token may come."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """(V,) tokens that may come next; None where all may."""

    def accept(self, token_id: int) -> None:
        """The answer goes on with a token that was allowed."""


class Generation:
    """The state of one row that generates."""

    def __init__(
        self,
        row: int,
        prompt: list[int],
        params: SamplingParams,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        constraint: Constraint | None = None,
    ) -> None:
        self.row, self.prompt = row, prompt
        self._constraint = constraint
        self._params = params
        self._sampler = Sampler(params, config.vocab_size, prompt)
        self._detokenizer = Detokenizer(tokenizer) if tokenizer else None
        self._stop = StopStrings(params.stop)
        self._all_ends = end_tokens(config, tokenizer) | frozenset(params.stop_token_ids)
        self._ends = frozenset(params.stop_token_ids) if params.ignore_eos else self._all_ends
        self._count = 0

    def next(self, logits: Logits, *, last: bool) -> TokenEvent:
        """Sample from (V,) logits; `last` says that the row has no room for another token."""
        allowed = self._constraint.allowed() if self._constraint else None
        if self._count < self._params.min_tokens:
            allowed = self._without_ends(allowed, len(logits))
        sampled = self._sampler.sample(logits, allowed)
        self._count += 1
        ended = sampled.token_id in self._ends
        text = ""
        finished = False
        if self._constraint and not ended:
            self._constraint.accept(sampled.token_id)
            finished = self._constraint.finished
        if self._detokenizer and not ended:
            text = self._stop.push(self._detokenizer.push(sampled.token_id))
        reason: FinishReason | None = None
        if ended or finished or self._stop.stopped:
            reason = "stop"
        elif last or self._count >= self._params.max_tokens:
            reason = "length"
        if reason and not self._stop.stopped:
            rest = self._detokenizer.flush() if self._detokenizer else ""
            text += self._stop.push(rest) + self._stop.flush()
        return TokenEvent(
            row=self.row,
            token_id=sampled.token_id,
            text=text,
            logprob=sampled.logprob,
            top_logprobs=sampled.top_logprobs,
            finish_reason=reason,
        )

    def _without_ends(
        self, allowed: NDArray[np.bool_] | None, vocab_size: int
    ) -> NDArray[np.bool_] | None:
        """(V,) what may come but end tokens; where nothing is left, what may come."""
        mask = np.ones(vocab_size, np.bool_) if allowed is None else allowed.copy()
        mask[[token for token in self._all_ends if token < vocab_size]] = False
        return mask if mask.any() else allowed
