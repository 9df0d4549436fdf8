"""The draws that most rows need, from few of their candidates: greedy, and nucleus alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .candidates import COLDEST, Candidates

if TYPE_CHECKING:
    from .sampling import SamplingParams

WIDTH = 32
"""Candidates that are looked at: a nucleus is seldom larger."""


def quick_draw(
    candidates: Candidates,
    params: Sequence["SamplingParams"],
    unchanged: NDArray[np.bool_],
    uniforms: NDArray[np.float64],
    mass_error: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The columns of rows whose logits nothing changed, and which are certain.

    What is certain is what `candidate_draw` would say; of the other rows nothing is said.

    Args:
        candidates: not of the whole vocabulary.
        mass_error: relative error that the masses may have.
    """
    columns = np.zeros(len(params), np.int64)  # greedy: of equals, the lowest id stands first
    sure = unchanged & (candidates.logits[:, 0] > candidates.logits[:, -1])
    nucleus, simple = np.zeros((2, len(params)), np.bool_)
    for row, one in enumerate(params):
        if one.temperature == 0:
            simple[row] = True
        elif (
            one.top_p < 1
            and one.min_p == 0
            and (one.top_k == 0 or one.top_k >= candidates.vocab_size)
        ):
            nucleus[row] = simple[row] = True
    sure &= simple
    rows = np.flatnonzero(sure & nucleus)
    if rows.size:
        columns[rows], sure[rows] = _nuclei(candidates, params, rows, uniforms[rows], mass_error)
    return columns, sure


def _nuclei(
    candidates: Candidates,
    params: Sequence["SamplingParams"],
    rows: NDArray[np.int64],
    uniforms: NDArray[np.float64],
    mass_error: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    degrees = np.array([max(params[row].temperature, COLDEST) for row in rows], np.float32)
    top_p = np.array([params[row].top_p for row in rows])
    logits, at = candidates.logits[rows, :WIDTH], np.arange(len(rows))
    weights = np.exp((logits - logits[:, :1]) / degrees[:, None])
    cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
    wanted = top_p * candidates.mass_tempered[rows]
    least = (cumulative < (wanted * (1 - mass_error))[:, None]).sum(axis=1)
    most = (cumulative < (wanted * (1 + mass_error))[:, None]).sum(axis=1)
    last = weights.shape[1] - 1
    floor = weights[at, np.minimum(least, last)]
    # The least weight of the nucleus is the same at both bounds, and another one stands below it.
    sure = weights[at, np.minimum(most, last)] == floor
    kept = weights >= floor[:, None]
    sure &= ~kept[:, last]
    widest = max(int(kept[sure].sum(axis=1).max(initial=1)), 1)
    ids = np.where(kept, candidates.ids[rows, :WIDTH], candidates.vocab_size)[:, :widest]
    order = np.argsort(ids, axis=1)
    ordered = np.where(kept, weights, np.float32(0))[:, :widest][at[:, None], order]
    reached = np.cumsum(ordered, axis=1, dtype=np.float64)
    index = (reached <= (uniforms * reached[:, -1])[:, None]).sum(axis=1)
    end = np.maximum((reached < reached[:, -1:]).sum(axis=1), 0)  # the last one of any weight
    return order[at, np.minimum(index, end)], sure
