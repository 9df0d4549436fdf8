"""What rows sample with, as arrays: made while a step runs, read when it has ended."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from .candidates import COLDEST

if TYPE_CHECKING:
    from .sampling import Sampler, SamplingParams

Mask = NDArray[np.bool_] | None


class Settings:
    """The sampling parameters of P rows, each (P,); P may be 0.

    Attributes:
        temperature: float32, at least `COLDEST`.
        top_k: 0 where it keeps all of the vocabulary.
        greedy: where the temperature is 0.
        nucleus: where top-p alone cuts something off.
    """

    def __init__(self, params: "Sequence[SamplingParams]", vocab_size: int) -> None:
        self.temperature = np.array([max(one.temperature, COLDEST) for one in params], np.float32)
        self.top_p = np.array([one.top_p for one in params], np.float64)
        self.min_p = np.array([one.min_p for one in params], np.float64)
        self.top_k = np.array([one.top_k for one in params], np.int64)
        self.top_k[self.top_k >= vocab_size] = 0
        self.greedy = np.array([one.temperature == 0 for one in params], np.bool_)
        self.nucleus = ~self.greedy & (self.top_p < 1) & (self.min_p == 0) & (self.top_k == 0)

    def of(self, rows: NDArray[np.int64]) -> Self:
        """Those of some rows."""
        some = object.__new__(type(self))
        for name, values in vars(self).items():
            setattr(some, name, values[rows])
        return some


class Draws:
    """What P rows draw their next token with.

    Args:
        samplers: one for each row; no two are the same.
        masks: (V,) what is allowed at each row; None where all is.
        uniforms: the next number of each sampler's stream; asked of them by default.
        settings: of these samplers, where they are at hand.

    Attributes:
        adjusted: rows whose logits a penalty, a bias or a mask changes.
        reporting: rows that report log-probabilities.
    """

    def __init__(
        self,
        samplers: "Sequence[Sampler]",
        masks: Sequence[Mask],
        uniforms: Sequence[float] | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.samplers, self.masks = samplers, masks
        if uniforms is None:
            uniforms = [sampler.uniform() for sampler in samplers]
        self.uniforms = np.array(uniforms, np.float64)
        self.settings = settings or Settings(
            [sampler.params for sampler in samplers], samplers[0].vocab_size if samplers else 0
        )
        self.adjusted = [
            row
            for row, (sampler, mask) in enumerate(zip(samplers, masks, strict=True))
            if mask is not None or sampler.adjusts
        ]
        self.reporting = [
            row for row, one in enumerate(samplers) if one.params.logprobs is not None
        ]
