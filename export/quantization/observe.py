"""What calibration keeps of a group's input: how often each magnitude occurs."""

from typing import Literal

import torch
from torch import Tensor

from nemo_trt.e4m3 import scale_of
from nemo_trt.export.ops import to_e4m3

Method = Literal["amax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("amax", "percentile", "mse")
PERCENTILE = 99.999
_BF16_MAGNITUDES = 2**15
_MSE_STEPS = 33  # clips tried: amax * 2 ** (-step / 8), down to a sixteenth


class Observer:
    """Counts the magnitudes of a tensor that comes in pieces, exactly, as BF16 numbers.

    Memory: 256 KiB.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(_BF16_MAGNITUDES, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        """Count every number of x."""
        bits = x.to(torch.bfloat16).view(torch.int16).flatten().to(torch.int32) & 0x7FFF
        self._counts += torch.bincount(bits, minlength=_BF16_MAGNITUDES).cpu()

    @property
    def amax(self) -> float:
        """The largest magnitude, 0 when nothing was seen."""
        seen = self._counts.nonzero()
        return float(_magnitudes()[seen[-1]]) if len(seen) else 0.0

    def clip(self, method: Method) -> float:
        """The magnitude that a scale is made for.

        - amax: the largest one; nothing saturates on the calibration set.
        - percentile: the one that `PERCENTILE` per cent of all numbers do not exceed.
        - mse: the one with the least squared error, of those tried.
        """
        if method == "amax" or self.amax == 0:
            return self.amax
        if method == "percentile":
            share = self._counts.cumsum(0).double() / self._counts.sum()
            return float(_magnitudes()[int((share >= PERCENTILE / 100).nonzero()[0])])
        tried = [self.amax * 2 ** (-step / 8) for step in range(_MSE_STEPS)]
        return min(tried, key=self._squared_error)

    def _squared_error(self, clip: float) -> float:
        seen = self._counts.nonzero()[:, 0]
        values = _magnitudes()[seen]
        scale = torch.tensor(scale_of(clip))
        error = to_e4m3(values, scale).double() * scale - values
        return float((self._counts[seen] * error**2).sum())


def _magnitudes() -> Tensor:
    """Every BF16 magnitude, ascending, in float32."""
    bits = torch.arange(_BF16_MAGNITUDES, dtype=torch.int16)
    return bits.view(torch.bfloat16).float()
