"""E4M3 against ml_dtypes, an implementation that is not ours."""

import ml_dtypes
import numpy as np
import pytest

from nemo_trt import e4m3

pytestmark = pytest.mark.unit


def test_every_code_means_what_ml_dtypes_says() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(e4m3.to_float32(codes), expected, equal_nan=True)
    assert float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max) == e4m3.E4M3_MAX


def test_a_scale_multiplies_once_per_tensor_or_per_row() -> None:
    codes = np.random.default_rng(0).integers(0, 127, (5, 9)).astype(np.uint8)
    wide = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(e4m3.to_float32(codes, np.float32(0.3)), wide * np.float32(0.3))
    rows = np.linspace(0.1, 2, 5, dtype=np.float32)[:, None]
    assert np.array_equal(e4m3.to_float32(codes, rows), wide * rows)
