"""Samples many rows at once from their candidates: exactly as from all logits, or not at all.

What candidates leave open, the weight of the tokens outside, is known within bounds. A row whose
token is the same at both bounds has its token; any other needs its whole logits.
"""

import numpy as np
from numpy.typing import NDArray

from .candidates import Candidates, Floats, Ids
from .draws import Draws, Settings
from .quick_draw import quick_draw
from .sampling import Sampled

_MASS_ERROR = 1e-4
"""Relative error that a device's sum over the vocabulary in fp32 may have."""
_ROUNDING = 1e-12
"""Relative difference of sums in float64 that is not told from none."""


class Drawn:
    """What the candidates of P positions decided.

    Attributes:
        tokens: one for each position; of no meaning where it is not decided.
        undecided: positions whose whole logits are needed.
    """

    def __init__(
        self,
        candidates: Candidates,
        draws: Draws,
        tokens: NDArray[np.int64],
        decided: NDArray[np.bool_],
    ) -> None:
        self._samplers = draws.samplers
        self._reports: dict[int, Sampled] = {}
        width, vocab_size = candidates.ids.shape[1], candidates.vocab_size
        for row in draws.reporting:
            count = self._samplers[row].params.logprobs or 0
            if min(count, vocab_size) > width:
                decided[row] = False
            elif decided[row]:
                own = candidates.of(np.array([row])).in_order()
                self._reports[row] = _report(own, int(tokens[row]), count)
        self.tokens: list[int] = tokens.tolist()
        self.undecided: list[int] = [] if decided.all() else np.flatnonzero(~decided).tolist()

    def take(self, row: int) -> Sampled:
        """The token of a position that is decided; its sampler remembers it. Once for each."""
        token = self.tokens[row]
        self._samplers[row].remember(token)
        return self._reports.get(row) or Sampled(token_id=token, logprob=None, top_logprobs=())


def draw_candidates(candidates: Candidates, draws: Draws) -> Drawn:
    """Choose a token for each position, where the candidates decide; no sampler is told."""
    with np.errstate(all="ignore"):  # a row that is not finite is not decided
        if candidates.complete:
            tokens, decided = _slow_draw(candidates, draws, np.arange(len(candidates)))
        else:
            tokens, decided = quick_draw(candidates, draws.settings, draws.uniforms, _MASS_ERROR)
            if draws.adjusted:
                decided[draws.adjusted] = False
            if not decided.all():
                rest = np.flatnonzero(~decided)
                tokens[rest], decided[rest] = _slow_draw(candidates.of(rest), draws, rest)
    return Drawn(candidates, draws, tokens, decided)


def _slow_draw(
    candidates: Candidates, draws: Draws, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The tokens of some rows, whose candidates these are, and which are certain."""
    candidates = candidates.in_order()
    adjusted, decided = candidates.logits, np.isfinite(candidates.logits[:, 0])
    decided &= np.isfinite(candidates.mass) & np.isfinite(candidates.mass_tempered)
    changed = np.isin(rows, draws.adjusted)
    if changed.any():
        adjusted = adjusted.copy()
    for at in np.flatnonzero(changed).tolist():
        sampler, mask = draws.samplers[rows[at]], draws.masks[rows[at]]
        found = sampler.adjusted_some(candidates.ids[at], candidates.logits[at], mask)
        if found is None:
            decided[at] = False
        else:
            adjusted[at] = found
    settings = draws.settings.of(rows)
    draw = _Draw(candidates, adjusted, changed, decided, settings, draws.uniforms[rows])
    return candidates.ids[np.arange(len(rows)), draw.columns()], draw.decided


class _Draw:
    """One draw of P rows. `decided` is narrowed to the rows whose token is certain."""

    def __init__(
        self,
        candidates: Candidates,
        adjusted: Floats,
        changed: NDArray[np.bool_],
        decided: NDArray[np.bool_],
        settings: Settings,
        uniforms: NDArray[np.float64],
    ) -> None:
        self.candidates, self.adjusted, self.changed = candidates, adjusted, changed
        self.decided, self.uniforms = decided, uniforms
        self.temperature, self.greedy = settings.temperature, settings.greedy
        self.top_p, self.min_p, self.top_k = settings.top_p, settings.min_p, settings.top_k
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
    ids: Ids, weights: Floats, kept: NDArray[np.bool_], uniforms: NDArray[np.float64]
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


def _report(candidates: Candidates, token: int, count: int) -> Sampled:
    """A token of one position in order, with its log-probability, and the `count` likeliest."""
    ids, logits = candidates.ids[0].tolist(), candidates.logits[0].tolist()
    normaliser = logits[0] + float(np.log(np.float64(candidates.mass[0])))
    top = tuple((ids[at], logits[at] - normaliser) for at in range(min(count, len(ids))))
    logprob = logits[ids.index(token)] - normaliser
    return Sampled(token_id=token, logprob=logprob, top_logprobs=top)
