"""Rounding to E4M3 against ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest

from nemo_trt.e4m3 import from_float32

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_every_bf16_number_is_rounded_as_ml_dtypes_rounds_it(scale: float) -> None:
    numbers = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = np.clip(numbers / np.float32(scale), -448, 448)
    expected = ratio.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    found = from_float32(numbers, scale)
    real = ~np.isnan(numbers)
    assert np.array_equal(found[real], expected[real])
    assert np.isnan(found.view(ml_dtypes.float8_e4m3fn).astype(np.float32)[~real]).all()


def test_ties_go_to_even() -> None:
    numbers = np.arange(17, 32, 2).astype(np.float32)
    expected = numbers.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(from_float32(numbers), expected)
