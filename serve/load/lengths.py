"""How long prompts and answers are: fixed, uniform or lognormal numbers of tokens."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nemo_trt.errors import RequestError

_FORMS = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:MAX]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution over numbers of tokens.

    Attributes:
        kind: "fixed" is `low` always; "uniform" is `low` to `high`, both included; "lognormal" has
            the median `low` and its logarithm the standard deviation `sigma`.
        high: the largest number there can be; what lies above it becomes it.
    """

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int | None = None
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.low < 1:
            raise RequestError(f"A length must be at least 1 token, got {self.low}.")
        if self.high is not None and self.high < self.low:
            raise RequestError(
                f"A length's upper bound must be at least {self.low}, got {self.high}."
            )
        if self.kind == "uniform" and self.high is None:
            raise RequestError("Uniform lengths must have an upper bound, got none.")
        if not 0 <= self.sigma <= 10:
            raise RequestError(f"A length's sigma must be 0 to 10, got {self.sigma:g}.")

    @property
    def typical(self) -> int:
        """The median."""
        if self.kind == "uniform" and self.high is not None:
            return (self.low + self.high) // 2
        return self.low

    def draw(self, random: np.random.Generator) -> int:
        """One number of tokens, 1 or more."""
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform" and self.high is not None:
            return int(random.integers(self.low, self.high, endpoint=True))
        drawn = round(self.low * math.exp(self.sigma * random.standard_normal()))
        return max(1, drawn if self.high is None else min(drawn, self.high))

    def __str__(self) -> str:
        """As `parse_lengths` reads it."""
        if self.kind == "fixed":
            return str(self.low)
        if self.kind == "uniform":
            return f"uniform:{self.low}:{self.high}"
        bound = "" if self.high is None else f":{self.high}"
        return f"lognormal:{self.low}:{self.sigma:g}{bound}"


def parse_lengths(text: str) -> Lengths:
    """Read "128", "uniform:64:256" or "lognormal:128:0.6:1024".

    Raises:
        RequestError: it is none of these.
    """
    kind, *numbers = text.split(":")
    try:
        match kind, numbers:
            case _, []:
                return Lengths(kind="fixed", low=int(kind))
            case "uniform", [low, high]:
                return Lengths(kind="uniform", low=int(low), high=int(high))
            case "lognormal", [median, sigma]:
                return Lengths(kind="lognormal", low=int(median), sigma=float(sigma))
            case "lognormal", [median, sigma, high]:
                return Lengths(
                    kind="lognormal", low=int(median), sigma=float(sigma), high=int(high)
                )
    except ValueError:
        pass
    raise RequestError(f"Lengths must be {_FORMS}, got {text!r}.")
