"""Attention computes in FP16, with its cache and a product of its result; all else stays BF16."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from nemo_trt.errors import BundleError
from nemo_trt.passes.attend_in_fp16 import AttendInFp16
from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.promote_types import PROMOTED, PromoteTypes
from nemo_trt.passes.scale_queries import ScaleQueries

from .computing import bf16, computed, graph_of, operators

pytestmark = pytest.mark.unit

BF16, FP16 = ir.DataType.BFLOAT16, ir.DataType.FLOAT16
HEAD = (
    "g (bfloat16[2, 4, 1, 8] q, bfloat16[2, 2, 1, 8] k, bfloat16[2, 2, 1, 8] v, int64[2] at, "
    "int64[2] n, bfloat16[2, 2, 6, 8] key, bfloat16[2, 2, 6, 8] value) => "
)
ATTENTION = (
    "new_key = TensorScatter<axis = -2>(key, k, at) "
    "new_value = TensorScatter<axis = -2>(value, v, at) "
    "mixed = Attention<is_causal = 1, scale = 0.3>(q, new_key, new_value, , , , n) "
)
TURNED = "rows = Transpose<perm = [0, 2, 1, 3]>(mixed) flat = Reshape(rows, shape) "
PRODUCT = "wide = Transpose<perm = [1, 0]>(w) y = MatMul(flat, wide) "
SHAPE = {"shape": np.array([0, 0, -1])}


def layer(behind: str = PRODUCT, **weights: Any) -> ir.Model:
    """One layer's attention, its caches named as the contract names them."""
    outputs = "(bfloat16[2, 1, D] y, bfloat16[2, 2, 6, 8] new_key, bfloat16[2, 2, 6, 8] new_value)"
    model = graph_of(f"{HEAD} {outputs} {{ {ATTENTION} {TURNED} {behind} }}", SHAPE, **weights)
    names = {"key": "past_key_values.0.key", "value": "past_key_values.0.value"}
    for value in model.graph.inputs:
        value.name = names.get(value.name or "", value.name)
    for node in model.graph:  # as a traced graph states what it computes
        for value in node.outputs:
            value.type = value.type or ir.TensorType(BF16)
    return model


def feeds(model: ir.Model) -> dict[str, Any]:
    given = {"at": np.array([3, 5]), "n": np.array([4, 6])}
    for value in model.graph.inputs:
        if value.name not in given:
            assert value.shape is not None
            given[value.name or ""] = bf16(*value.shape.numpy()).astype(np.float32)
    return given


def in_fp32(model: ir.Model, given: dict[str, Any]) -> list[Any]:
    """What a lowered graph computes, FP16 and BF16 promoted; of weights behind a Cast, too."""
    apply(model, [PromoteTypes(half=True)])
    return computed(model, **given)


@pytest.mark.parametrize("scaled", [False, True])
def test_attention_and_a_product_of_it_are_fp16_and_the_rest_bf16(scaled: bool) -> None:
    weight = bf16(5, 32)
    model, given = layer(w=weight), feeds(layer(w=weight))
    expected = in_fp32(layer(w=weight), given)
    apply(model, [*([ScaleQueries()] if scaled else []), AttendInFp16()])
    nodes = {node.op_type: node for node in model.graph}
    for name in ("Attention", "TensorScatter", "Reshape", "MatMul"):
        assert nodes[name].outputs[0].dtype is FP16
    (y, *caches), *_ = [model.graph.outputs]
    assert y.dtype is BF16 and [one.dtype for one in caches] == [FP16, FP16]
    assert [one.dtype for one in model.graph.inputs] == [BF16] * 3 + [ir.DataType.INT64] * 2 + [
        FP16
    ] * 2
    # One Cast each of query, key, value, weight and result; a scaled query is rounded once.
    assert operators(model).count("Cast") == 5 + scaled
    for found, other in zip(in_fp32(model, given), expected, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-5)


def test_a_result_that_no_product_takes_is_bf16_again() -> None:
    """That of an FP8 product is quantised, by a scale in BF16."""
    model = layer("y = Identity(flat)")
    apply(model, [AttendInFp16()])
    (cast,) = [
        node for node in model.graph if node.op_type == "Cast" and node.outputs[0].name == "flat"
    ]
    assert cast.attributes["to"].as_int() == int(BF16)
    assert [node.outputs[0].dtype for node in model.graph if node.op_type == "Reshape"] == [FP16]


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_other_graphs_stay_as_they_are(kind: str) -> None:
    text = f"{HEAD} (bfloat16[2, 4, 1, 8] mixed) {{ {ATTENTION} }}".replace("bfloat16", kind)
    model = graph_of(text)
    for node in model.graph:
        node.outputs[0].type = model.graph.inputs[0].type
    apply(model, [AttendInFp16()])
    assert operators(model) == ["Attention", "TensorScatter", "TensorScatter"]


def test_pieces_of_a_graph_are_lowered_too() -> None:
    """An attention alone reads caches that are inputs."""
    attention = "mixed = Attention<is_causal = 1, scale = 0.3>(q, key, value, , , , n)"
    model = graph_of(f"{HEAD} (bfloat16[2, 4, 1, 8] mixed) {{ {attention} }}")
    apply(model, [AttendInFp16()])
    assert operators(model) == ["Attention", "Cast", "Cast"]
    assert [one.dtype for one in model.graph.inputs[5:]] == [FP16, FP16]


def test_a_cache_that_is_computed_is_refused() -> None:
    """It would be cast whole in every step."""
    text = f"{HEAD} (bfloat16[2, 4, 1, 8] mixed) {{ {ATTENTION} }}".replace("(key,", "(other,")
    model = graph_of(text.replace("{ new", "{ other = Neg(key) new"))
    for node in model.graph:
        node.outputs[0].type = ir.TensorType(BF16)
    with pytest.raises(BundleError, match="no TensorScatter in BF16"):
        apply(model, [AttendInFp16()])


def test_what_was_computed_in_fp16_is_rounded_to_it() -> None:
    model = layer(w=bf16(5, 32))
    apply(model, [AttendInFp16(), PromoteTypes(half=True)])
    stated = {node.op_type: node.outputs[0].meta.get(PROMOTED) for node in model.graph}
    assert stated["Attention"] is FP16 and stated["MatMul"] is FP16
    (y,) = model.graph.outputs[:1]
    assert y.meta[PROMOTED] is BF16
