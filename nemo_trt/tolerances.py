"""The one table of limits, by the precision that an engine's arithmetic really has.

docs/validation.md says where each number comes from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nemo_trt.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Limits of a case. Each `max_` holds at every position, each `min_` for the case's mean.

    Attributes:
        max_relative_l2, max_kl, min_cosine: at every position.
        mean_kl, min_top1, min_top5: over the case's positions.
        max_perplexity_ratio: the engine's perplexity over the reference's, either way round.
    """

    max_relative_l2: float
    min_cosine: float
    max_kl: float
    mean_kl: float
    min_top1: float
    min_top5: float
    max_perplexity_ratio: float


TOLERANCES = {
    "fp32": Tolerance(
        max_relative_l2=5e-4,
        min_cosine=0.999999,
        max_kl=1e-6,
        mean_kl=1e-7,
        min_top1=1.0,
        min_top5=1.0,
        max_perplexity_ratio=1.0001,
    ),
    "fp16": Tolerance(
        max_relative_l2=5e-2,
        min_cosine=0.999,
        max_kl=1e-3,
        mean_kl=1e-4,
        min_top1=0.97,
        min_top5=0.97,
        max_perplexity_ratio=1.005,
    ),
    "bf16": Tolerance(
        max_relative_l2=3.5e-1,
        min_cosine=0.97,
        max_kl=4.5e-1,
        mean_kl=6e-3,
        min_top1=0.94,
        min_top5=0.93,
        max_perplexity_ratio=1.02,
    ),
    "fp8": Tolerance(
        max_relative_l2=7e-1,
        min_cosine=0.91,
        max_kl=4.7e-1,
        mean_kl=1.2e-2,
        min_top1=0.92,
        min_top5=0.92,
        max_perplexity_ratio=1.02,
    ),
}


def tolerance_of(compute_precision: str) -> Tolerance:
    """The limits of a compute precision.

    Raises:
        RequestError: there are none: nothing is judged by a guess.
    """
    if compute_precision not in TOLERANCES:
        raise RequestError(
            f"Tolerances must exist for {compute_precision}, got only {', '.join(TOLERANCES)}."
        )
    return TOLERANCES[compute_precision]


CASES = (
    "whole prefill",
    "growing cache",
    "long prefill",
    "chunked prefill",
    "stepwise decode",
    "ragged batch",
    "poisoned tail",
    "reused slot",
    "rewound rows",
    "runner",
    "long position",
)
"""Every case that a verdict must hold, in the order in which they run (`validate.cases`)."""
CASE_FIGURES = ("max_relative_l2", "min_cosine", "max_kl", "mean_kl", "top1", "top5")
"""What a case is judged by: each has a limit."""
_SHARES = ("top1", "top5")
_STANDARD_DEVIATIONS = 4


def case_failures(
    figures: Mapping[str, float], num_positions: int, limits: Mapping[str, float]
) -> tuple[str, ...]:
    """What a case failed, in words; nothing when it passed.

    Args:
        figures: a number for each of `CASE_FIGURES`.
        num_positions: compared tokens. Of few, more may miss by chance.
        limits: the fields of a `Tolerance`.
    """
    failures = []
    for figure in CASE_FIGURES:
        value, least = figures[figure], figure in _SHARES or figure.startswith("min")
        limit = limits[f"min_{figure}" if figure in _SHARES else figure]
        if figure in _SHARES:
            limit = _share_of(num_positions, limit)
        if not (value >= limit if least else value <= limit):
            words = "at least" if least else "at most"
            failures.append(f"{figure} must be {words} {limit:g}, got {value:.6g}")
    return tuple(failures)


def _share_of(num_positions: int, limit: float) -> float:
    """The share of so few positions that must agree where `limit` of many must: four standard
    deviations of a binomial distribution lower, and a whole number of positions."""
    spread = _STANDARD_DEVIATIONS * math.sqrt(num_positions * limit * (1 - limit))
    misses = math.floor(num_positions * (1 - limit) + spread)
    return 1 - misses / max(num_positions, 1)


MAX_PERPLEXITY = 100.0
"""Of a language model on the built-in texts: SmolLM2-135M, the weakest in use here, has 20."""


def language_failures(perplexity: Mapping[str, float]) -> tuple[str, ...]:
    """What the perplexities of "engine" and "reference" on the built-in texts fail, in words."""
    return tuple(
        f"perplexity of the {who} must be at most {MAX_PERPLEXITY:g} on the built-in texts, got "
        f"{value:.6g}: this is no language model. Its weights were read or stored wrongly"
        for who, value in perplexity.items()
        if not value <= MAX_PERPLEXITY
    )


def perplexity_failures(
    perplexity: Mapping[str, float], limits: Mapping[str, float]
) -> tuple[str, ...]:
    """What the perplexities of "engine" and "reference" failed, in words."""
    ratio = perplexity["engine"] / perplexity["reference"]  # NaN where no case gave logits
    limit = limits["max_perplexity_ratio"]
    if 1 / limit <= ratio <= limit:
        return ()
    return (f"perplexity ratio must be 1 within a factor {limit:g}, got {ratio:.6g}",)
