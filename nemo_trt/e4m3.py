"""FP8 E4M3FN: its scales, and its bits, held as uint8, as float32.

Format: 1 sign, 4 exponent (bias 7) and 3 mantissa bits; no infinities; 0x7f and 0xff are NaN.
https://arxiv.org/abs/2209.05433
"""

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16

E4M3_MAX = 448.0
"""The largest finite number."""


def scale_of(amax: float) -> float:
    """The BF16 scale that puts `amax` on E4M3's largest number; 1 for a tensor of zeros."""
    wanted = np.array([amax / E4M3_MAX if amax > 0 else 1.0], np.float32)
    return float(bfloat16.to_float32(bfloat16.from_float32(wanted))[0])


def to_float32(
    bits: NDArray[np.uint8], scale: NDArray[np.float32] | np.float32 | float = 1.0
) -> NDArray[np.float32]:
    """Widen E4M3 bits times a scale, rounded once, in a new array.

    Args:
        bits: any shape.
        scale: a scalar, or what broadcasts against `bits`.
    """
    if np.ndim(scale) == 0:
        return (_TABLE * np.float32(scale)).take(bits)
    wide = _TABLE.take(bits)
    wide *= scale
    return wide


def from_float32(numbers: NDArray[np.float32], scale: float = 1.0) -> NDArray[np.uint8]:
    """E4M3 bits of numbers over a scale, kept within the largest; to nearest, ties to even.

    NaN stays NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # NaN that signals; the largest numbers
        ratio = numbers / np.float32(scale)
    size = np.minimum(np.abs(ratio), np.float32(E4M3_MAX))
    positive = _TABLE[:127].astype(np.float64)  # ascending, up to the largest
    middle = (positive[1:] + positive[:-1]) / 2
    code = np.searchsorted(middle, size.astype(np.float64))  # the lower one of a tie
    tie = (code < len(middle)) & (middle[np.minimum(code, len(middle) - 1)] == size)
    code = (code + (tie & (code % 2 == 1))).astype(np.uint8)
    code = np.where(np.isnan(ratio), np.uint8(127), code)
    bits: NDArray[np.uint8] = code | (np.signbit(ratio).astype(np.uint8) << 7)
    return bits


def _table() -> NDArray[np.float32]:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = (8 + mantissa) * 2.0 ** (exponent - 10)
    value = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    value[(code & 127) == 127] = np.nan
    return np.where(code < 128, value, -value).astype(np.float32)


_TABLE = _table()
