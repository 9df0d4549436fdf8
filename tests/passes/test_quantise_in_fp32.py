"""Activations are quantised in fp32: the same numbers, since BF16 widens exactly."""

import ml_dtypes
import numpy as np
import pytest

from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.quantise_in_fp32 import QuantiseInFp32

from .computing import bf16, computed, graph_of, operators

pytestmark = pytest.mark.unit
TEXT = (
    "g (float[8] x) => (float[8] y) <float8e4m3fn z = {0}> "
    "{ b = Cast<to = 16>(x) q = QuantizeLinear(b, s, z) d = DequantizeLinear(q, s) "
    "y = Cast<to = 1>(d) }"
)


def test_every_number_is_the_one_that_bf16_arithmetic_gives() -> None:
    x = bf16(8)
    scale = np.array(0.4, ml_dtypes.bfloat16)
    model = graph_of(TEXT, {"s": scale})
    apply(model, [QuantiseInFp32()])
    assert operators(model).count("Cast") == 4
    wide = scale.astype(np.float32)
    levels = (x.astype(np.float32) / wide).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    expected = (levels * wide).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert (computed(model, x=x.astype(np.float32))[0] == expected).all()


def test_scales_in_fp32_need_no_casts() -> None:
    model = graph_of(TEXT.replace("Cast<to = 16>", "Identity"), {"s": np.array(0.4, np.float32)})
    apply(model, [QuantiseInFp32()])
    assert operators(model).count("Cast") == 1
