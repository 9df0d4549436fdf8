"""FP8 weights become wide ones, with the numbers that DequantizeLinear gives."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from nemo_trt.passes.dequantise_weights import DequantiseWeights
from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.weights import weight_of

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("scale", ["<float s = {0.5}>", "<float[3] s = {0.5, 1.0, 3.0}>"])
def test_the_numbers_are_those_of_the_node(scale: str) -> None:
    text = (
        f"g (float[2, 4] x) => (float[2, 3] y) {scale} "
        "{ d = DequantizeLinear<axis = 0>(w, s) t = Transpose<perm = [1, 0]>(d) y = MatMul(x, t) }"
    )
    w, x = random(3, 4).astype(ml_dtypes.float8_e4m3fn), random(2, 4)
    expected = computed(graph_of(text, w=w), x=x)[0]
    model = graph_of(text, w=w)
    apply(model, [DequantiseWeights(ir.DataType.FLOAT)])
    assert operators(model) == ["MatMul", "Transpose"]
    assert list(model.graph.initializers) == ["w"]
    np.testing.assert_allclose(computed(model, x=x)[0], expected, rtol=1e-6)


def test_a_product_is_rounded_once_to_bf16() -> None:
    w = np.array([[1.125, -0.875]], ml_dtypes.float8_e4m3fn)
    model = graph_of(
        "g (float[1] x) => (bfloat16[1, 2] y) <float s = {0.3}> "
        "{ d = DequantizeLinear(w, s) y = Neg(d) }",
        w=w,
    )
    DequantiseWeights(ir.DataType.BFLOAT16).change(model.graph)
    found = weight_of(model.graph.initializers["w"])
    assert found is not None and found.dtype is ir.DataType.BFLOAT16
    exact = w.astype(np.float32) * np.float32(0.3)
    rounded = exact.astype(ml_dtypes.bfloat16)
    assert found.read().tolist() == rounded.view(np.uint16).tolist()


def test_activations_are_still_dequantised() -> None:
    text = (
        "g (float[2] x) => (float[2] y) <float s = {0.5}, float8e4m3fn z = {0}> "
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s) }"
    )
    model = graph_of(text)
    apply(model, [DequantiseWeights(ir.DataType.FLOAT)])
    assert operators(model) == ["DequantizeLinear", "QuantizeLinear"]
