"""When an open loop sends: a Poisson process, or a steady beat."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Arrivals = Literal["poisson", "constant"]


def offsets(rate: float, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due, without end.

    Args:
        rate: requests a second on average.
        arrivals: "poisson" draws the pauses from an exponential distribution, so that requests come
            in bunches as those of people who do not know each other; "constant" sends each 1/rate.
    """
    if arrivals == "constant":
        number = 0
        while True:
            yield number / rate
            number += 1
    random = np.random.default_rng([seed, 1])
    due = 0.0
    while True:
        due += random.exponential(1 / rate)
        yield due
