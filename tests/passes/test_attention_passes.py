"""The passes that look at attentions, on one: lengths as an input, the query scaled before, BF16
rounding spelled out, and the capacity as a number."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from nemo_trt.errors import BundleError
from nemo_trt.passes import round_values
from nemo_trt.passes.fix_capacity import FixCapacity
from nemo_trt.passes.graph_pass import GraphPass, apply, make
from nemo_trt.passes.promote_types import PROMOTED
from nemo_trt.passes.round_values import RoundValues
from nemo_trt.passes.scale_queries import ScaleQueries
from nemo_trt.passes.take_lengths import LENGTHS, TakeLengths

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit
TEXT = (
    "g (float[2, 4, 3, 8] q, float[2, 2, T, 8] past_key_values, float[2, 2, T, 8] v, int64[2] n) "
    "=> (float[2, 4, 3, 8] y) "
    "{ m = Identity(n) y = Attention<is_causal = 1, scale = 0.3>(q, past_key_values, v, , , , m) }"
)
FEEDS: dict[str, Any] = {
    "q": random(2, 4, 3, 8),
    "past_key_values.0.key": random(2, 2, 6, 8),
    "v": random(2, 2, 6, 8),
    "n": np.array([6, 4]),
}


def attention() -> ir.Model:
    model = graph_of(TEXT)
    model.graph.inputs[1].name = "past_key_values.0.key"
    return model


def without(attribute: str) -> ir.Model:
    model = attention()
    del list(model.graph)[-1].attributes[attribute]
    return model


def test_lengths_are_an_input() -> None:
    expected = computed(attention(), **FEEDS)[0]
    model = attention()
    apply(model, [TakeLengths()])
    assert operators(model) == ["Attention"]
    assert (computed(model, **FEEDS, **{LENGTHS: FEEDS["n"]})[0] == expected).all()


def test_queries_are_scaled_before() -> None:
    expected = computed(attention(), **FEEDS)[0]
    model = attention()
    apply(model, [ScaleQueries()])
    node = list(model.graph)[-1]
    assert node.attributes["scale"].as_float() == 1
    np.testing.assert_allclose(computed(model, **FEEDS)[0], expected, rtol=1e-4, atol=1e-5)


def test_t_becomes_a_number() -> None:
    model = attention()
    apply(model, [FixCapacity(6)])
    assert [str(dim) for dim in model.graph.inputs[1].shape or ()] == ["2", "2", "6", "8"]
    assert (computed(model, **FEEDS)[0] == computed(attention(), **FEEDS)[0]).all()


def rounding(model: ir.Model, dtype: ir.DataType) -> ir.Model:
    list(model.graph)[-1].outputs[0].meta[PROMOTED] = dtype
    apply(model, [RoundValues()])
    return model


@pytest.mark.parametrize(("dtype", "numbers", "most"), [
    (ir.DataType.BFLOAT16, ml_dtypes.bfloat16, 0.05), (ir.DataType.FLOAT16, np.float16, 0.005)
])  # fmt: skip
def test_an_attention_that_is_spelled_out_is_the_same(
    dtype: ir.DataType, numbers: Any, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = computed(attention(), **FEEDS)[0]
    model = rounding(attention(), dtype)
    assert operators(model).count("Cast") == 8, "query, scores, probabilities, result"
    found = computed(model, **FEEDS)[0]
    assert (found == found.astype(numbers).astype(np.float32)).all()
    assert 0 < abs(found - expected).max() < most
    monkeypatch.setattr(
        round_values,
        "rounding",
        lambda value, name, _: [make("Identity", [value], f"{name}/as is")],
    )
    exact = computed(rounding(attention(), dtype), **FEEDS)[0]
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("one", [ScaleQueries(), RoundValues()])
def test_an_attention_without_its_scale_is_refused(one: GraphPass) -> None:
    with pytest.raises(BundleError, match="scale"):
        apply(without("scale"), [one])


def test_an_attention_without_lengths_is_refused() -> None:
    model = graph_of(TEXT.replace(", , , , m)", ")"))
    for one in (TakeLengths(), RoundValues()):
        with pytest.raises(BundleError, match="nonpad_kv_seqlen"):
            apply(model, [one])
