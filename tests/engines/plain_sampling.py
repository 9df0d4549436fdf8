"""Sampling as it is defined, one row and one token at a time: slow, and nothing shared with ours.

Weights are rounded to fp32 as everywhere; a sum that comes near a limit decides nothing.
"""

import math

import numpy as np

from nemo_trt.engines.sampling import SamplingParams

RANKED = 256
"""Where nothing is cut off, so many of the likeliest are drawn from first."""


def plain_token(
    logits: np.ndarray,
    params: SamplingParams,
    prompt: list[int],
    answer: list[int],
    allowed: np.ndarray | None,
    uniform: float,
) -> int | None:
    """The token; None where another rounding could give another one."""
    values = plain_logits(logits, params, prompt, answer, allowed)
    tokens = range(len(values))
    if params.temperature == 0:
        return max(tokens, key=lambda token: (values[token], -token))
    temperature = np.float32(max(params.temperature, 1e-30))
    peak = max(values)
    with np.errstate(over="ignore"):
        scaled = [(value - peak) / temperature for value in values]
    weights = [float(np.exp(value)) for value in scaled]
    kept = set(tokens)
    threshold = np.float32(math.log(params.min_p)) if params.min_p else None
    if 0 < params.top_k < len(values):
        kth = sorted(scaled, reverse=True)[params.top_k - 1]
        threshold = kth if threshold is None else max(kth, threshold)
    if threshold is not None:
        kept = {token for token in kept if scaled[token] >= threshold}
    if params.top_p < 1:
        total = math.fsum(weights[token] for token in kept)
        reached = floor = 0.0
        for weight in sorted((weights[token] for token in kept), reverse=True):
            reached, floor = reached + weight, weight
            if _near(reached, params.top_p * total) and reached != params.top_p * total:
                return None
            if reached >= params.top_p * total:
                break
        kept = {token for token in kept if weights[token] >= floor}
    if threshold is None and params.top_p == 1:
        ranked = sorted(tokens, key=lambda token: (-logits[token], token))[:RANKED]
        order = [*ranked, *sorted(kept - set(ranked))]
    else:
        order = sorted(kept)
    target = uniform * math.fsum(weights[token] for token in kept)
    reached = 0.0
    for token in order:
        reached += weights[token]
        if _near(reached, target) and target:
            return None
        if reached > target:
            return token
    raise AssertionError("the cumulative distribution ends above every number")


def plain_logits(
    logits: np.ndarray,
    params: SamplingParams,
    prompt: list[int],
    answer: list[int],
    allowed: np.ndarray | None,
) -> list[np.float32]:
    """Penalties, biases and what is allowed."""
    values = list(logits)
    penalty = np.float32(params.repetition_penalty)
    for token in {*prompt, *answer} if params.repetition_penalty != 1 else ():
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token in set(answer):
        frequency = np.float32(params.frequency_penalty) * np.float32(answer.count(token))
        values[token] -= np.float32(params.presence_penalty) + frequency
    for token, bias in params.logit_bias.items():
        values[token] += np.float32(bias)
    if allowed is not None:
        values = [v if may else np.float32(-np.inf) for v, may in zip(values, allowed, strict=True)]
    return values


def _near(found: float, other: float) -> bool:
    return math.isclose(found, other, rel_tol=1e-9)
