"""Chooses one row's next token from its logits, as `SamplingParams` asks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nemo_trt.errors import BundleError, RequestError

Floats = NDArray[np.float32]
_BLOCK = 1024
_LARGEST = 1e6
"""Of temperatures, penalties and biases: what is added to a logit stays a float32 of some use."""
_COLDEST = 1e-30
"""Temperatures below it do as it does: only what is as likely as the likeliest is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, with the meaning that OpenAI's API and vLLM give the names.

    Attributes:
        max_tokens: tokens to generate at most.
        min_tokens: tokens before which no end token is chosen.
        temperature: 0 takes the likeliest token (of equals the lowest id).
        top_k: keep the tokens whose logit is at least the k-th largest; 0 keeps all.
        top_p: keep the likeliest tokens until their probability reaches this; tokens as likely as
            the last one stay too.
        min_p: keep tokens at least this share as likely as the likeliest.
        repetition_penalty: of every token in prompt or answer, positive logits are divided and
            negative ones multiplied (Keskar et al. 2019, CTRL).
        presence_penalty: subtracted from the logit of every token in the answer.
        frequency_penalty: subtracted as often as the token stands in the answer.
        logit_bias: token id -> number added to its logit.
        seed: makes the row's choices repeatable; each sampled token takes one random number.
        stop: texts that end the answer and are not shown.
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

    Order: penalties and bias, allowed tokens, temperature, min-p, top-k, top-p, draw.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, prompt_ids: Sequence[int] = ()
    ) -> None:
        outside = [i for i in params.logit_bias if not 0 <= i < vocab_size]
        if outside:
            raise RequestError(f"logit_bias must name tokens below {vocab_size}, got {outside[0]}.")
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._scratch = np.empty(vocab_size, np.float32)
        self._weights = np.empty(vocab_size, np.float32)
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
        peak = require_finite(logits)
        adjusted = self._adjust(logits, allowed)
        greedy = self._params.temperature == 0
        token = int(adjusted.argmax()) if greedy else self._draw(adjusted)
        self._seen[token] = None
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._params.logprobs is None:
            return Sampled(token_id=token, logprob=None, top_logprobs=())
        return self._with_logprobs(token, logits, peak)

    def _adjust(self, logits: Floats, allowed: NDArray[np.bool_] | None) -> Floats:
        """Penalties, bias and what is allowed, on a copy where there are any."""
        if allowed is None and not self._changes and not (self._counted and self._counts):
            return logits
        params, adjusted = self._params, self._scratch
        np.copyto(adjusted, logits)
        if params.repetition_penalty != 1 and self._seen:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            values = adjusted[ids]
            penalty = np.float32(params.repetition_penalty)
            adjusted[ids] = np.where(values > 0, values / penalty, values * penalty)
        if self._counted and self._counts:
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            adjusted[ids] -= params.presence_penalty + params.frequency_penalty * counts
        adjusted[self._bias_ids] += self._bias
        if allowed is not None:
            adjusted[~allowed] = -np.inf
            if adjusted.max() == -np.inf:
                raise RequestError(
                    "No token of the vocabulary may come next; the grammar is stuck."
                )
        return adjusted

    def _draw(self, logits: Floats) -> int:
        """Truncate and draw: the inverse of the cumulative distribution, in the order of ids."""
        params = self._params
        scaled = np.subtract(logits, logits.max(), out=self._scratch)
        with np.errstate(over="ignore"):  # -inf is right for what is so much less likely
            scaled /= np.float32(max(params.temperature, _COLDEST))  # log of relative probability
        threshold = -math.inf
        if params.min_p > 0:
            threshold = math.log(params.min_p)
        if 0 < params.top_k < scaled.size:
            threshold = max(threshold, _kth_largest(scaled, params.top_k))
        ids: NDArray[np.int64] | None = None
        if threshold > -math.inf:
            ids = np.flatnonzero(scaled >= np.float32(threshold))
            weights = np.exp(scaled[ids])
        else:
            weights = np.exp(scaled, out=self._weights)
        if params.top_p < 1:
            kept = np.flatnonzero(weights >= _nucleus_floor(weights, params.top_p))
            ids = kept if ids is None else ids[kept]
            weights = weights[kept]
        index = _inverse_cdf(weights, self._random.random())
        return index if ids is None else int(ids[index])

    def _with_logprobs(self, token: int, logits: Floats, peak: float) -> Sampled:
        total = np.exp(np.subtract(logits, np.float32(peak), out=self._scratch), out=self._weights)
        normaliser = peak + math.log(float(total.sum(dtype=np.float64)))
        count = min(self._params.logprobs or 0, logits.size)
        top: tuple[tuple[int, float], ...] = ()
        if count:
            ids = np.flatnonzero(logits >= _kth_largest(logits, count))
            order = ids[np.argsort(-logits[ids], kind="stable")][:count]
            top = tuple((int(i), float(logits[i]) - normaliser) for i in order)
        return Sampled(token_id=token, logprob=float(logits[token]) - normaliser, top_logprobs=top)


def _kth_largest(values: Floats, k: int) -> float:
    """The k-th largest value. Columns' maxima bound it from below, so that few are partitioned."""
    columns = values.size // 64
    if k <= columns // 2:
        maxima = values[: 64 * columns].reshape(64, columns).max(axis=0)
        values = values[values >= np.partition(maxima, columns - k)[columns - k]]
    return float(np.partition(values, values.size - k)[values.size - k])


def _nucleus_floor(weights: Floats, top_p: float) -> np.float32:
    """The smallest weight of the smallest set of largest weights that holds `top_p` of the sum.

    What lies below (1 - p) / n of the sum can hold 1 - p of it at the most, so it is never sorted.
    """
    total = float(weights.sum(dtype=np.float64))
    candidates = weights[weights >= np.float32((1 - top_p) * total / weights.size * 0.999)]
    above = 0.0  # weight of what is known to lie in the set
    while candidates.size > _BLOCK:  # halve until a sort is cheap
        middle = candidates.size // 2
        candidates.partition(middle)
        upper = float(candidates[middle:].sum(dtype=np.float64))
        if above + upper >= top_p * total:
            candidates = candidates[middle:]
        else:
            above += upper
            candidates = candidates[:middle]
    descending = np.sort(candidates)[::-1]
    cumulative = above + np.cumsum(descending, dtype=np.float64)
    index = int(np.searchsorted(cumulative, top_p * total))
    return np.float32(descending[min(index, descending.size - 1)])


def _inverse_cdf(weights: Floats, uniform: float) -> int:
    """The first index whose cumulative weight exceeds `uniform` times the sum."""
    starts = np.arange(0, weights.size, _BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), blocks.size - 1)
    before = blocks[block - 1] if block else 0.0
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    cumulative = before + np.cumsum(inside, dtype=np.float64)
    index = int(np.searchsorted(cumulative, target, side="right"))
    if index >= inside.size:  # rounding at the very end: the last token of any weight
        index = int(np.flatnonzero(inside)[-1])
    return block * _BLOCK + index
