"""The draws that most rows need, from few of their candidates: greedy, and nucleus alone."""

import numpy as np
from numpy.typing import NDArray

from .candidates import Candidates, Floats, Ids
from .draws import Settings

WIDTH = 32
"""Candidates that are looked at: a nucleus is seldom larger."""


def quick_draw(
    candidates: Candidates,
    settings: Settings,
    uniforms: NDArray[np.float64],
    mass_error: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The tokens of rows whose logits nothing changes, and which are certain.

    What is certain is what `candidate_draw` would say; of the other rows nothing is said: of a
    greedy row, for example, whose likeliest token has an equal.

    Args:
        candidates: not of the whole vocabulary.
        mass_error: relative error that the masses may have.
    """
    logits = candidates.logits
    sure = (logits[:, 1:] <= logits[:, :-1]).all(axis=1)
    sure &= np.isfinite(logits[:, 0] + (candidates.mass + candidates.mass_tempered))
    if not settings.nucleus.any():
        sure &= settings.greedy
        sure &= logits[:, 0] > logits[:, 1]
        return candidates.ids[:, 0].astype(np.int64), sure
    columns, decided = _nuclei(candidates, settings, uniforms, mass_error)
    sure &= np.where(settings.nucleus, decided, settings.greedy & (logits[:, 0] > logits[:, 1]))
    return candidates.ids[np.arange(len(columns)), columns].astype(np.int64), sure


def _nuclei(
    candidates: Candidates,
    settings: Settings,
    uniforms: NDArray[np.float64],
    mass_error: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    logits, ids = candidates.logits[:, :WIDTH], candidates.ids[:, :WIDTH]
    weights = np.exp((logits - logits[:, :1]) / settings.temperature[:, None])
    cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
    wanted = (settings.top_p * candidates.mass_tempered)[:, None]
    least = (cumulative < wanted * (1 - mass_error)).sum(axis=1)
    most = (cumulative < wanted * (1 + mass_error)).sum(axis=1)
    # The last column is in no nucleus that is seen whole.
    at, last = np.arange(len(ids)), weights.shape[1] - 1
    floor = weights[at, np.minimum(least, last)]
    columns, sure = _draw(ids, weights, floor, uniforms)
    if (least != most).any():
        other = weights[at, np.minimum(most, last)]
        apart = np.flatnonzero(floor != other)  # whichever it is, the token may be the same
        size = (weights[apart] >= floor[apart, None]).sum(axis=1)
        beside = weights[apart, np.minimum(size, last)] == other[apart]  # there is no third
        also, also_sure = _draw(ids[apart], weights[apart], other[apart], uniforms[apart])
        sure[apart] &= beside & also_sure & (also == columns[apart])
    return columns, sure


def _draw(
    ids: Ids, weights: Floats, floor: Floats, uniforms: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The columns that nuclei down to a least weight give, and where all of them is seen."""
    kept = weights >= floor[:, None]
    sure = ~kept[:, -1]
    widest = max(int(kept[sure].sum(axis=1).max(initial=1)), 1)
    kept, at = kept[:, :widest], np.arange(len(weights))
    order = np.where(kept, ids[:, :widest], np.iinfo(ids.dtype).max).argsort(axis=1)
    ordered = np.where(kept, weights[:, :widest], np.float32(0))[at[:, None], order]
    reached = np.cumsum(ordered, axis=1, dtype=np.float64)
    index = (reached <= (uniforms * reached[:, -1])[:, None]).sum(axis=1)
    end = (reached < reached[:, -1:]).sum(axis=1)  # the last one of any weight
    return order[at, np.minimum(index, end)], sure
