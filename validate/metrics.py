"""How far an engine's logits are from the reference's, position by position, in float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """One number a position, (n,) each; logits r of the reference, e of the engine.

    Attributes:
        max_abs, mean_abs: of e - r.
        relative_l2: |e - r| / |r|.
        cosine: of e and r.
        kl: KL(softmax r || softmax e) in nats.
        top1: 1 where the engine's likeliest token is the reference's, or tied with it.
        top5: share of the engine's five likeliest that are among the reference's, or tied with its
            fifth.
    """

    max_abs: Values
    mean_abs: Values
    relative_l2: Values
    cosine: Values
    kl: Values
    top1: Values
    top5: Values


def compare(
    engine: NDArray[np.float32], reference: NDArray[np.float32], *, noise: float
) -> Metrics:
    """Compare (n, V) logits. Tokens whose reference logits differ by at most 2 * `noise` are tied.

    A position whose engine logits are not finite gets infinite errors and no agreement.
    """
    engine64, reference64 = engine.astype(np.float64), reference.astype(np.float64)
    finite = np.asarray(np.isfinite(engine64).all(axis=-1))
    engine64 = np.where(finite[:, None], engine64, 0.0)
    error = engine64 - reference64
    norms = np.linalg.norm(engine64, axis=-1), np.linalg.norm(reference64, axis=-1)
    log_engine, log_reference = log_softmax(engine64), log_softmax(reference64)
    kl = (np.exp(log_reference) * (log_reference - log_engine)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (engine64 * reference64).sum(axis=-1) / (norms[0] * norms[1])

    def where_finite(values: Values, otherwise: float) -> Values:
        return np.where(finite, values, otherwise)

    return Metrics(
        max_abs=where_finite(np.abs(error).max(axis=-1), np.inf),
        mean_abs=where_finite(np.abs(error).mean(axis=-1), np.inf),
        relative_l2=where_finite(np.linalg.norm(error, axis=-1) / norms[1], np.inf),
        cosine=where_finite(np.nan_to_num(cosine), 0.0),
        kl=where_finite(np.maximum(kl, 0.0), np.inf),
        top1=where_finite(_agreement(engine64, reference64, 1, noise), 0.0),
        top5=where_finite(_agreement(engine64, reference64, 5, noise), 0.0),
    )


def log_softmax(logits: Values) -> Values:
    """Natural logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Values = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def negative_log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Values:
    """-log p of each target, (n,), by (n, V) logits."""
    log_probabilities = log_softmax(logits.astype(np.float64))
    return -np.take_along_axis(log_probabilities, targets[:, None], axis=-1)[:, 0]


def likeliest(logits: NDArray[np.float32], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens of (V,) logits and their probabilities; none if not finite."""
    if not np.isfinite(logits).all():
        return ()
    log_probabilities = log_softmax(logits.astype(np.float64))
    best = np.argsort(-log_probabilities, kind="stable")[:count]
    return tuple((int(token), float(np.exp(log_probabilities[token]))) for token in best)


def _agreement(engine: Values, reference: Values, count: int, noise: float) -> Values:
    """Share of the engine's `count` likeliest tokens that the reference counts among its own."""
    count = min(count, engine.shape[-1])
    chosen = np.argpartition(-engine, count - 1, axis=-1)[:, :count]
    last = -np.partition(-reference, count - 1, axis=-1)[:, count - 1 : count]
    found = np.take_along_axis(reference, chosen, axis=-1) >= last - 2 * noise
    share: Values = found.mean(axis=-1)
    return share
