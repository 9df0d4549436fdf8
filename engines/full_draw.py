"""Draws a token from one row's logits of the whole vocabulary."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .candidates import COLDEST, NUM_CANDIDATES, Floats, kth_largest, largest_ids

if TYPE_CHECKING:
    from .sampling import SamplingParams

_BLOCK = 1024


def draw(
    adjusted: Floats, logits: Floats, params: "SamplingParams", uniform: float, scratch: Floats
) -> int:
    """Truncate and draw: the inverse of the cumulative distribution.

    What is cumulated stands in the order of ids where anything is cut off. Where nothing is, the
    `NUM_CANDIDATES` largest logits come first, descending, so that a draw seldom needs the others.

    Args:
        adjusted: (V,) logits after penalties, biases and what is allowed.
        logits: (V,) as the model gave them: they decide which come first.
        uniform: in [0, 1).
        scratch: (V,) overwritten; it may be `adjusted`.
    """
    scaled = np.subtract(adjusted, adjusted.max(), out=scratch)
    with np.errstate(over="ignore"):  # -inf is right for what is so much less likely
        scaled /= np.float32(max(params.temperature, COLDEST))  # log of relative probability
    limited = 0 < params.top_k < scaled.size
    if params.min_p == 0 and params.top_p == 1 and not limited:
        first = largest_ids(logits, min(NUM_CANDIDATES, logits.size))
        return _draw_first(np.exp(scaled, out=scaled), first, uniform)
    threshold = math.log(params.min_p) if params.min_p > 0 else -math.inf
    if limited:
        threshold = max(threshold, float(kth_largest(scaled, params.top_k)))
    ids: NDArray[np.int64] | None = None
    if threshold > -math.inf:
        ids = np.flatnonzero(scaled >= np.float32(threshold))
        weights = np.exp(scaled[ids])
    else:
        weights = np.exp(scaled, out=scaled)
    if params.top_p < 1:
        kept = np.flatnonzero(weights >= _nucleus_floor(weights, params.top_p))
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    index = _inverse_cdf(weights, uniform)
    return index if ids is None else int(ids[index])


def _draw_first(weights: Floats, first: NDArray[np.int64], uniform: float) -> int:
    """Draw with the tokens `first` before all others, which follow in the order of ids."""
    target = uniform * float(weights.sum(dtype=np.float64))
    cumulative = np.cumsum(weights[first], dtype=np.float64)
    index = int(np.searchsorted(cumulative, target, side="right"))
    if index < first.size:
        return int(first[index])
    weights[first] = 0
    rest = float(weights.sum(dtype=np.float64))
    if rest == 0:  # rounding at the very end: the last token of any weight
        return int(first[np.flatnonzero(np.diff(cumulative, prepend=0))[-1]])
    return _inverse_cdf(weights, (target - float(cumulative[-1])) / rest)


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
        return int(np.flatnonzero(weights)[-1])
    return block * _BLOCK + index
