"""Samples many rows at once from their candidates: exactly as from all logits, or not at all.

What candidates leave open, the weight of the tokens outside, is known within bounds. A row whose
token is the same at both bounds has its token; any other needs its whole logits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .candidates import COLDEST, Candidates, Floats
from .quick_draw import quick_draw
from .sampling import Sampled, Sampler

Mask = NDArray[np.bool_] | None
_MASS_ERROR = 1e-4
"""Relative error that a device's sum over the vocabulary in fp32 may have."""
_ROUNDING = 1e-12
"""Relative difference of sums in float64 that is not told from none."""


def sample_candidates(
    candidates: Candidates,
    samplers: Sequence[Sampler],
    masks: Sequence[Mask],
    uniforms: Sequence[float],
) -> list[Sampled | None]:
    """Choose a token for each position, and tell its sampler.

    Args:
        samplers: one for each of P positions; no two are the same.
        masks: (V,) what is allowed at each position; None where all is.
        uniforms: the next number of each sampler's stream.

    Returns:
        What was chosen; None where the candidates do not decide, and nothing was told then.
    """
    adjusted, changed, decided = _adjust(candidates, samplers, masks)
    with np.errstate(all="ignore"):  # a row that is not finite is not decided
        columns = _columns(candidates, adjusted, changed, decided, samplers, np.array(uniforms))
    rows = np.arange(len(samplers))
    tokens = candidates.ids[rows, columns].tolist()
    return [
        _sampled(candidates, row, columns[row], tokens[row], sampler) if sure else None
        for row, (sampler, sure) in enumerate(zip(samplers, decided.tolist(), strict=True))
    ]


def _columns(
    candidates: Candidates,
    adjusted: Floats,
    changed: NDArray[np.bool_],
    decided: NDArray[np.bool_],
    samplers: Sequence[Sampler],
    uniforms: NDArray[np.float64],
) -> NDArray[np.int64]:
    """(P,) which candidate each row takes; `decided` is narrowed to those that are certain."""
    if candidates.complete:
        return _Draw(candidates, adjusted, changed, decided, samplers, uniforms).columns()
    params = [sampler.params for sampler in samplers]
    columns, sure = quick_draw(candidates, params, ~changed & decided, uniforms, _MASS_ERROR)
    rest = np.flatnonzero(decided & ~sure)
    if rest.size:
        others = [samplers[row] for row in rest]
        draw = _Draw(
            candidates.of(rest),
            adjusted[rest],
            changed[rest],
            decided[rest],
            others,
            uniforms[rest],
        )
        columns[rest] = draw.columns()
        decided[rest] = draw.decided
    return columns


def _adjust(
    candidates: Candidates, samplers: Sequence[Sampler], masks: Sequence[Mask]
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """(P, K) logits after penalties, biases and masks; which rows they changed; which are sound."""
    adjusted, count = candidates.logits, len(samplers)
    changed, decided = np.zeros(count, np.bool_), np.isfinite(candidates.logits[:, 0])
    decided &= np.isfinite(candidates.mass) & np.isfinite(candidates.mass_tempered)
    for row, (sampler, mask) in enumerate(zip(samplers, masks, strict=True)):
        if mask is None and not sampler.adjusts:
            continue
        if adjusted is candidates.logits:
            adjusted = adjusted.copy()
        found = sampler.adjusted_some(candidates.ids[row], candidates.logits[row], mask)
        changed[row] = True
        if found is None:
            decided[row] = False
        else:
            adjusted[row] = found
    return adjusted, changed, decided


class _Draw:
    """One draw of P rows. `decided` is narrowed to the rows whose token is certain."""

    def __init__(
        self,
        candidates: Candidates,
        adjusted: Floats,
        changed: NDArray[np.bool_],
        decided: NDArray[np.bool_],
        samplers: Sequence[Sampler],
        uniforms: NDArray[np.float64],
    ) -> None:
        params = [sampler.params for sampler in samplers]
        self.candidates, self.adjusted, self.changed = candidates, adjusted, changed
        self.decided, self.uniforms = decided, uniforms
        self.temperature = np.array([max(one.temperature, COLDEST) for one in params], np.float32)
        self.greedy = np.array([one.temperature == 0 for one in params])
        self.top_p = np.array([one.top_p for one in params])
        self.min_p = np.array([one.min_p for one in params])
        self.top_k = np.array([min(one.top_k, candidates.vocab_size) for one in params])
        self.top_k[self.top_k == candidates.vocab_size] = 0
        self.peak = adjusted.max(axis=1)
        # No token outside the candidates has a larger logit.
        bound = candidates.logits[:, -1]
        self.bound = np.full_like(bound, -np.inf) if candidates.complete else bound

    def columns(self) -> NDArray[np.int64]:
        """(P,) which candidate each row takes; of no meaning where a row is not decided."""
        likeliest = self.adjusted == self.peak[:, None]
        ids = np.where(likeliest, self.candidates.ids, self.candidates.vocab_size)
        columns: NDArray[np.int64] = ids.argmin(axis=1)
        self.decided &= np.isfinite(self.peak)
        self.decided &= (self.peak > self.bound) | (~self.greedy & (self.peak == self.bound))
        drawn = np.flatnonzero(~self.greedy & self.decided)
        if drawn.size:
            columns[drawn] = self._drawn(drawn)
        return columns

    def _drawn(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        # Descending: at once where nothing was changed, else by a sort.
        order: NDArray[np.int64] | None = None
        values = self.adjusted[rows]
        if self.changed[rows].any():
            order = np.argsort(-values, axis=1, kind="stable")
            values = np.take_along_axis(values, order, axis=1)
        peak, temperature = self.peak[rows, None], self.temperature[rows, None]
        scaled = (values - peak) / temperature
        bound = (self.bound[rows, None] - peak) / temperature  # (P, 1)
        weights = np.exp(scaled)
        threshold = np.log(self.min_p[rows])
        top_k = self.top_k[rows]
        within = (top_k > 0) & (top_k <= scaled.shape[1])
        kth = scaled[np.arange(len(rows)), np.where(within, top_k, 1) - 1]
        threshold = np.maximum(threshold, np.where(within, kth, -np.inf)).astype(np.float32)
        outside = self._outside(rows)
        cut = threshold > -np.inf
        # Every token that passes is a candidate: the bound itself does not, or nothing is outside.
        closed = (threshold > bound[:, 0]) | self.candidates.complete
        kept = scaled >= threshold[:, None]
        low = np.where(closed | cut | (top_k > 0), 0.0, outside[0])
        high = np.where(closed, 0.0, outside[1])
        self.decided[rows] &= np.isfinite(high)
        nucleus = self.top_p[rows] < 1
        if nucleus.any():
            floor, sure = _nucleus_floor(
                np.where(kept, weights, np.float32(0)), self.top_p[rows], low, high
            )
            sure &= closed | (floor > np.exp(bound[:, 0]))
            kept &= (weights >= floor[:, None]) | ~nucleus[:, None]
            closed |= nucleus & sure
            self.decided[rows] &= sure | ~nucleus
        truncated = cut | (top_k > 0) | nucleus
        self.decided[rows] &= closed | ~truncated
        uniforms = self.uniforms[rows]
        columns = np.zeros(len(rows), np.int64)
        if truncated.any():
            some = np.flatnonzero(truncated)
            ids = self.candidates.ids[rows[some]]
            if order is not None:
                ids = np.take_along_axis(ids, order[some], axis=1)
            columns[some] = _draw_by_id(ids, weights[some], kept[some], uniforms[some])
        if order is not None:
            columns = np.take_along_axis(order, columns[:, None], axis=1)[:, 0]
        if not truncated.all():
            some = np.flatnonzero(~truncated)
            columns[some], sure = self._draw_by_rank(rows[some], low[some], high[some])
            self.decided[rows[some]] &= sure
        return columns

    def _outside(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds of what all tokens outside weigh together, where the peak weighs 1."""
        if self.candidates.complete:
            return np.zeros(len(rows)), np.zeros(len(rows))
        logits = self.candidates.logits[rows]
        temperature = self.temperature[rows, None]
        inside = np.exp((logits - logits[:, :1]) / temperature).sum(axis=1, dtype=np.float64)
        mass = self.candidates.mass_tempered[rows].astype(np.float64)
        shift = np.exp((logits[:, 0].astype(np.float64) - self.peak[rows]) / temperature[:, 0])
        high = np.maximum(mass * (1 + _MASS_ERROR) - inside, 0) * shift
        low = np.maximum(mass * (1 - _MASS_ERROR) - inside, 0) * shift
        return np.where(self.changed[rows], 0, low), high

    def _draw_by_rank(
        self, rows: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Nothing is cut off: candidates in the order of the model's own logits, then others."""
        scaled = (self.adjusted[rows] - self.peak[rows, None]) / self.temperature[rows, None]
        cumulative = np.cumsum(np.exp(scaled), axis=1, dtype=np.float64)
        uniforms, total = self.uniforms[rows], cumulative[:, -1]
        least = _count(cumulative <= (uniforms * (total + low) * (1 - _ROUNDING))[:, None])
        most = _count(cumulative <= (uniforms * (total + high) * (1 + _ROUNDING))[:, None])
        sure = (least == most) & (most < cumulative.shape[1])
        columns = np.minimum(least, cumulative.shape[1] - 1)
        # Of equals at the edge, others may be candidates on another device.
        logits = self.candidates.logits[rows, columns]
        return columns, sure & (logits > self.bound[rows])


def _nucleus_floor(
    weights: Floats, top_p: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[Floats, NDArray[np.bool_]]:
    """The smallest weight of each nucleus, and where it is certain.

    Args:
        weights: (P, K) descending, 0 for what is cut off already.
        low, high: (P,) bounds of the weight outside.
    """
    cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
    total = cumulative[:, -1]
    last = np.maximum(_count(weights > 0) - 1, 0)  # rounding at the very end
    least = _count(cumulative < (top_p * (total + low) * (1 - _ROUNDING))[:, None])
    most = _count(cumulative < (top_p * (total + high) * (1 + _ROUNDING))[:, None])
    rows = np.arange(len(weights))
    floor = weights[rows, np.minimum(most, last)]
    sure = (weights[rows, np.minimum(least, last)] == floor) & ((most <= last) | (high == 0))
    return floor, sure


def _draw_by_id(
    ids: NDArray[np.int64], weights: Floats, kept: NDArray[np.bool_], uniforms: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The column that the inverse of the cumulative distribution, in the order of ids, gives."""
    widest = max(int(_count(kept).max()), 1)  # weights descend: what is kept stands first
    kept, weights = kept[:, :widest], weights[:, :widest]
    order = np.argsort(np.where(kept, ids[:, :widest], np.iinfo(np.int64).max), axis=1)
    rows = np.arange(len(ids))
    ordered = np.take_along_axis(np.where(kept, weights, np.float32(0)), order, axis=1)
    cumulative = np.cumsum(ordered, axis=1, dtype=np.float64)
    index = _count(cumulative <= (uniforms * cumulative[:, -1])[:, None])
    last = np.maximum(_count(cumulative < cumulative[:, -1:]), 0)  # the last one of any weight
    column: NDArray[np.int64] = order[rows, np.minimum(index, last)]
    return column


def _count(condition: NDArray[np.bool_]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.count_nonzero(condition, axis=1)
    return counts


def _sampled(
    candidates: Candidates, row: int, column: int, token: int, sampler: Sampler
) -> Sampled | None:
    count = sampler.params.logprobs
    if count is not None and min(count, candidates.vocab_size) > candidates.ids.shape[1]:
        return None
    sampler.remember(token)
    if count is None:
        return Sampled(token_id=token, logprob=None, top_logprobs=())
    logits = candidates.logits[row]
    normaliser = float(logits[0]) + float(np.log(np.float64(candidates.mass[row])))
    top = tuple(
        (int(candidates.ids[row, at]), float(logits[at]) - normaliser)
        for at in range(min(count, len(logits)))
    )
    return Sampled(token_id=token, logprob=float(logits[column]) - normaliser, top_logprobs=top)
