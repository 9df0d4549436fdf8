"""One row's generation: its next token, the text that may be shown of it, and when it ends."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nemo_trt.config import ModelConfig

from .end_tokens import end_tokens
from .sampling import Sampled, Sampler, SamplingParams
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
        stop: the stop string that ended it.
    """

    row: int
    token_id: int
    text: str
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None
    stop: str | None = None


class Constraint(Protocol):
    """What an answer may consist of: a grammar's state, which moves with its tokens."""

    @property
    def finished(self) -> bool:
        """Whether nothing but an end token may come."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """(V,) tokens that may come next; None where all may."""

    def accept(self, token_id: int) -> None:
        """The answer goes on with a token that was allowed."""


@dataclass(slots=True)
class Taken:
    """A token that was chosen and whose text is not known yet.

    Attributes:
        ended: it is an end token.
        reason: why the row ends here, as far as the token alone tells.
    """

    sampled: Sampled
    ended: bool
    reason: FinishReason | None


class Generation:
    """The state of one row that generates.

    A token is chosen in two parts. `take` needs the token alone, so the next step can be launched
    behind it. `tell` moves the constraint on, makes text and finds stop strings while that step
    runs; it may end the row one token late, and that token is dropped.

    Attributes:
        sampler: chooses the tokens, given what `mask` allows.
        count: tokens that were taken.
    """

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
        self.sampler = Sampler(params, config.vocab_size, prompt)
        self._vocab_size = config.vocab_size
        self._detokenizer = Detokenizer(tokenizer) if tokenizer else None
        self._stop = StopStrings(params.stop)
        self._all_ends = end_tokens(config, tokenizer) | frozenset(params.stop_token_ids)
        self._ends = frozenset(params.stop_token_ids) if params.ignore_eos else self._all_ends
        self.count = 0
        self._mask: NDArray[np.bool_] | None = None

    def next(self, logits: Logits, *, last: bool) -> TokenEvent:
        """Sample from (V,) logits; `last` says that the row has no room for another token."""
        return self.tell(self.take(self.sampler.sample(logits, self.mask()), last=last))

    @property
    def constrained(self) -> bool:
        """Whether what may come next depends on the text so far."""
        return self._constraint is not None

    def mask(self) -> NDArray[np.bool_] | None:
        """(V,) what may come next, once all that was taken has been told; None where all may."""
        if self._mask is None:
            self._mask = self._constraint.allowed() if self._constraint else None
            if self.count < self._params.min_tokens:
                self._mask = self._without_ends(self._mask)
        return self._mask

    def ends_with(self, token: int) -> bool:
        """Whether a token is one that ends the answer."""
        return token in self._ends

    def take(self, sampled: Sampled, *, last: bool) -> Taken:
        """The row goes on with a token; `last` says that it has no room for another."""
        self.count += 1
        self._mask = None
        ended = self.ends_with(sampled.token_id)
        reason: FinishReason | None = None
        if ended:
            reason = "stop"
        elif last or self.count >= self._params.max_tokens:
            reason = "length"
        return Taken(sampled, ended, reason)

    def tell(self, taken: Taken) -> TokenEvent:
        """What a token that was taken means, in the order in which they were taken."""
        sampled, reason, text = taken.sampled, taken.reason, ""
        if not taken.ended:
            if self._constraint:
                self._constraint.accept(sampled.token_id)
                if self._constraint.finished:
                    reason = "stop"
            if self._detokenizer:
                text = self._stop.push(self._detokenizer.push(sampled.token_id))
                if self._stop.stopped:
                    reason = "stop"
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
            stop=self._stop.found,
        )

    def _without_ends(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """(V,) what may come but end tokens; where nothing is left, what may come."""
        mask = np.ones(self._vocab_size, np.bool_) if allowed is None else allowed.copy()
        mask[[token for token in self._all_ends if token < self._vocab_size]] = False
        return mask if mask.any() else allowed
