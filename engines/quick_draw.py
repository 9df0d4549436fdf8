"""The draws that most rows need, from few of their candidates: greedy, and nucleus alone."""

import numpy as np
from numpy.typing import NDArray

from .candidates import Candidates, Floats
from .draws import Settings

WIDTH = 32
"""Candidates that are looked at: a nucleus is seldom larger."""


def quick_draw(
    candidates: Candidates,
    settings: Settings,
    uniforms: NDArray[np.float64],
    mass_error: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The columns of rows whose logits nothing changes, and which are certain.

    What is certain is what `candidate_draw` would say; of the other rows nothing is said.

    Args:
        candidates: not of the whole vocabulary.
        mass_error: relative error that the masses may have.
    """
    logits, mass = candidates.logits, candidates.mass_tempered
    sure = logits[:, 0] > logits[:, -1]
    sure &= np.isfinite(logits[:, 0] + (candidates.mass + mass))
    if not settings.nucleus.any():
        sure &= settings.greedy
        return np.zeros(len(sure), np.int64), sure  # of equals, the lowest id stands first
    columns, sure_nuclei = _nuclei(candidates, settings, uniforms, mass_error)
    columns[~settings.nucleus] = 0
    sure &= settings.greedy | (settings.nucleus & sure_nuclei)
    return columns, sure


def _nuclei(
    candidates: Candidates,
    settings: Settings,
    uniforms: NDArray[np.float64],
    mass_error: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    logits, at = candidates.logits[:, :WIDTH], np.arange(len(uniforms))
    weights = np.exp((logits - logits[:, :1]) / settings.temperature[:, None])
    cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
    wanted = settings.top_p * candidates.mass_tempered
    last = weights.shape[1] - 1
    least = np.minimum((cumulative < (wanted * (1 - mass_error))[:, None]).sum(axis=1), last)
    most = np.minimum((cumulative < (wanted * (1 + mass_error))[:, None]).sum(axis=1), last)
    floor, other = weights[at, least], weights[at, most]
    columns, sure = _draw(candidates.ids, weights, floor, uniforms)
    apart = np.flatnonzero(floor != other)
    if apart.size:  # whichever of two the nucleus is, the token may be the same
        size = (weights[apart] >= floor[apart, None]).sum(axis=1)
        beside = weights[apart, np.minimum(size, last)] == other[apart]  # there is no third
        also, also_sure = _draw(
            candidates.ids[apart], weights[apart], other[apart], uniforms[apart]
        )
        sure[apart] &= beside & also_sure & (also == columns[apart])
    return columns, sure


def _draw(
    ids: NDArray[np.int64], weights: Floats, floor: Floats, uniforms: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The columns that nuclei down to a least weight give, and where all of them is seen."""
    kept = weights >= floor[:, None]
    sure = ~kept[:, -1]
    widest = max(int(kept[sure].sum(axis=1).max(initial=1)), 1)
    kept, at = kept[:, :widest], np.arange(len(weights))
    order = np.argsort(np.where(kept, ids[:, :widest], np.iinfo(np.int64).max), axis=1)
    ordered = np.where(kept, weights[:, :widest], np.float32(0))[at[:, None], order]
    reached = np.cumsum(ordered, axis=1, dtype=np.float64)
    index = (reached <= (uniforms * reached[:, -1])[:, None]).sum(axis=1)
    end = (reached < reached[:, -1:]).sum(axis=1)  # the last one of any weight
    return order[at, np.minimum(index, end)], sure
