"""Sampling parameters, and the sampler of one row: its token history and random stream."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nemo_trt.errors import BundleError, RequestError
from nemo_trt.utf8 import require_utf8

from .candidates import Floats, largest_ids
from .full_draw import draw

_LARGEST = 1e6
"""Of temperatures, penalties and biases: what is added to a logit stays a float32 of some use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters, named and defined as in OpenAI's API and vLLM.

    Attributes:
        max_tokens: maximum number of tokens to generate.
        min_tokens: number of tokens to generate before an end token may be chosen.
        temperature: 0 selects the most likely token; ties go to the lowest id.
        top_k: keep the tokens whose logit is at least the k-th largest; 0 keeps all.
        top_p: keep the most likely tokens until their total probability reaches this; tokens tied
            with the last one are kept too.
        min_p: keep tokens at least this fraction as likely as the most likely one.
        repetition_penalty: divides the positive logits of tokens in the prompt or answer, and
            multiplies their negative ones (Keskar et al. 2019, CTRL).
        presence_penalty: subtracted from the logit of every token in the answer.
        frequency_penalty: subtracted from a token's logit once per occurrence in the answer.
        logit_bias: token id -> number added to its logit.
        seed: seed of the row's random stream; each sampled token consumes one number.
        stop: strings that end the answer and are left out of it.
        stop_token_ids: tokens that end the answer, besides the model's own.
        ignore_eos: the model's own end tokens do not end the answer.
        logprobs: number of alternatives to report with each token; 0 reports the token's own.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, holds, condition in (
            ("max_tokens", self.max_tokens >= 1, "be at least 1"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "be 0 to max_tokens"),
            ("temperature", 0 <= self.temperature <= _LARGEST, "be 0 to 1e6"),
            ("top_k", self.top_k >= 0, "be 0 or more"),
            ("top_p", 0 < self.top_p <= 1, "be above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "be 0 to 1"),
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "be 0.001 to 1000"),
            ("presence_penalty", abs(self.presence_penalty) <= _LARGEST, "be -1e6 to 1e6"),
            ("frequency_penalty", abs(self.frequency_penalty) <= _LARGEST, "be -1e6 to 1e6"),
            (
                "logit_bias",
                all(abs(b) <= _LARGEST for b in self.logit_bias.values()),
                "be -1e6 to 1e6",
            ),
            ("seed", self.seed is None or self.seed >= 0, "be 0 or more"),
            ("stop", all(self.stop), "hold no empty text"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "be 0 or more"),
        ):
            if not holds:
                raise RequestError(f"{name} must {condition}, got {getattr(self, name)}.")
        require_utf8(self.stop, "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A chosen token. Log-probabilities are natural logarithms of the model's own distribution,
    before any penalty, temperature or truncation."""

    token_id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


def require_finite(logits: Floats) -> float:
    """The largest of (V,) logits.

    Raises:
        BundleError: the logits hold NaN or +inf, or nothing but -inf.
    """
    peak = float(logits.max())
    if not math.isfinite(peak):
        raise BundleError(
            f"The engine's logits must be finite, got a maximum of {peak}. Run nemo-trt validate."
        )
    return peak


class Sampler:
    """Chooses the tokens of one row and remembers them for the penalties.

    Order: penalties and bias, allowed tokens, temperature, min-p, top-k, top-p, draw. Each token
    takes one random number of the row's own stream where the temperature is above 0.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, prompt_ids: Sequence[int] = ()
    ) -> None:
        outside = [i for i in params.logit_bias if not 0 <= i < vocab_size]
        if outside:
            raise RequestError(f"logit_bias must name tokens below {vocab_size}, got {outside[0]}.")
        self.params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self.vocab_size = vocab_size
        self._uniform: float | None = None
        self._scratch: Floats | None = None
        self._bias_ids = np.fromiter(params.logit_bias, np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        self._seen = dict.fromkeys(prompt_ids)  # an ordered set: prompt and answer
        self._counts: dict[int, int] = {}  # of the answer
        self._changes = bool(params.logit_bias) or params.repetition_penalty != 1
        self._counted = bool(params.presence_penalty or params.frequency_penalty)

    def sample(self, logits: Floats, allowed: NDArray[np.bool_] | None = None) -> Sampled:
        """Choose a token from (V,) float32 logits, which stay as they are.

        Args:
            allowed: (V,) where it is false, no token is chosen.

        Raises:
            BundleError: the logits hold NaN or +inf, or nothing but -inf.
            RequestError: no token is allowed.
        """
        return self.choose(logits, allowed, self.uniform())

    def uniform(self) -> float:
        """The number of the row's stream for its next token, in [0, 1); 0 for greedy rows."""
        if self._uniform is None:
            self._uniform = self._random.random() if self.params.temperature else 0.0
        return self._uniform

    def choose(self, logits: Floats, allowed: NDArray[np.bool_] | None, uniform: float) -> Sampled:
        """`sample`, by a number that was drawn already."""
        peak = require_finite(logits)
        if self._scratch is None:
            self._scratch = np.empty(self.vocab_size, np.float32)
        adjusted = logits
        if self.adjusts or allowed is not None:
            adjusted = self._adjusted(logits, allowed)
        if self.params.temperature == 0:
            token = int(adjusted.argmax())
        else:
            token = draw(adjusted, logits, self.params, uniform, self._scratch)
        self.remember(token)
        if self.params.logprobs is None:
            return Sampled(token_id=token, logprob=None, top_logprobs=())
        return self._with_logprobs(token, logits, peak)

    def remember(self, token: int) -> None:
        """The answer goes on with a token."""
        self._uniform = None
        self._seen[token] = None
        self._counts[token] = self._counts.get(token, 0) + 1

    @property
    def adjusts(self) -> bool:
        """Whether a penalty or a bias changes the next logits."""
        return self._changes or (self._counted and bool(self._counts))

    def adjusted_some(
        self, ids: NDArray[np.int64], logits: Floats, allowed: NDArray[np.bool_] | None
    ) -> Floats | None:
        """(K,) logits of some tokens after penalties, biases and what is allowed.

        Returns:
            None where the logit of a token that is not among them may have risen.
        """
        params = self.params
        if (
            (params.repetition_penalty < 1 and self._seen)
            or (min(params.presence_penalty, params.frequency_penalty) < 0 and self._counts)
            or not np.isin(self._bias_ids[self._bias > 0], ids).all()
        ):
            return None
        adjusted, tokens = logits.copy(), ids.tolist()
        if params.repetition_penalty != 1:
            seen = np.fromiter((token in self._seen for token in tokens), np.bool_, len(tokens))
            adjusted[seen] = self._repeated(adjusted[seen])
        if self._counted:
            counts = np.fromiter((self._counts.get(t, 0) for t in tokens), np.float32, len(tokens))
            stands = counts > 0
            adjusted[stands] -= self._counted_penalty(counts[stands])
        for token, bias in zip(self._bias_ids, self._bias, strict=True):
            adjusted[ids == token] += bias
        if allowed is not None:
            adjusted[~allowed[ids]] = -np.inf
        return adjusted

    def _adjusted(self, logits: Floats, allowed: NDArray[np.bool_] | None) -> Floats:
        """Penalties, bias and what is allowed, on a copy."""
        params, adjusted = self.params, self._scratch
        assert adjusted is not None
        np.copyto(adjusted, logits)
        if params.repetition_penalty != 1 and self._seen:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            adjusted[ids] = self._repeated(adjusted[ids])
        if self._counted and self._counts:
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            adjusted[ids] -= self._counted_penalty(counts)
        adjusted[self._bias_ids] += self._bias
        if allowed is not None:
            adjusted[~allowed] = -np.inf
            if adjusted.max() == -np.inf:
                raise RequestError(
                    "No token of the vocabulary may come next; the grammar is stuck."
                )
        return adjusted

    def _repeated(self, values: Floats) -> Floats:
        penalty = np.float32(self.params.repetition_penalty)
        return np.where(values > 0, values / penalty, values * penalty)

    def _counted_penalty(self, counts: Floats) -> Floats:
        params = self.params
        penalty: Floats = params.presence_penalty + params.frequency_penalty * counts
        return penalty

    def _with_logprobs(self, token: int, logits: Floats, peak: float) -> Sampled:
        relative = np.subtract(logits, np.float32(peak), out=self._scratch)
        total = np.exp(relative, out=relative)
        normaliser = peak + math.log(float(total.sum(dtype=np.float64)))
        count = min(self.params.logprobs or 0, logits.size)
        top: tuple[tuple[int, float], ...] = ()
        if count:
            best = largest_ids(logits, count)
            top = tuple((int(i), float(logits[i]) - normaliser) for i in best)
        return Sampled(token_id=token, logprob=float(logits[token]) - normaliser, top_logprobs=top)
