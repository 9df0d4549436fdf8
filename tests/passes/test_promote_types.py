"""Nothing is BF16 afterwards: inputs, weights, constants, attributes and what is computed."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.promote_types import PROMOTED, PromoteTypes

from .computing import bf16, computed, graph_of, random

pytestmark = pytest.mark.unit
C = {"c": np.array([3.0], ml_dtypes.bfloat16)}
TEXT = (
    "g (bfloat16[2, 4] x, float[2, 3] f) => (bfloat16[2, 3] y) "
    "{ p = MatMul(x, w) s = Mul(p, c) n = Cast<to = 16>(f) y = Add(s, n) }"
)


def test_it_computes_in_fp32_from_the_same_numbers() -> None:
    w, x, f = bf16(4, 3), bf16(2, 4), random(2, 3)
    model = graph_of(TEXT, C, w=w)
    apply(model, [PromoteTypes()])
    stated = [
        value.dtype for node in model.graph for value in (*node.inputs, *node.outputs) if value
    ]
    assert ir.DataType.BFLOAT16 not in stated
    found = computed(model, x=x.astype(np.float32), f=f)[0]
    expected = x.astype(np.float32) @ w.astype(np.float32) * 3 + f
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_was_computed_in_bf16_is_marked() -> None:
    model = graph_of(TEXT, C, w=bf16(4, 3))
    (output,) = model.graph.outputs
    apply(model, [PromoteTypes()])
    assert output.meta[PROMOTED]


def test_a_constant_in_an_attribute_is_widened_exactly() -> None:
    model = graph_of("g (float[1] x) => (bfloat16[1] y) { y = Constant() }")
    (node,) = model.graph
    value = np.array([0.1], ml_dtypes.bfloat16)
    node.attributes.add(ir.AttrTensor("value", ir.Tensor(value)))
    PromoteTypes().change(model.graph)
    tensor = node.attributes["value"].as_tensor()
    assert tensor.dtype is ir.DataType.FLOAT and (tensor.numpy() == value.astype(np.float32)).all()
