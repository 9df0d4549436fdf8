"""A group whose quantisation is taken out computes with its weight as it is."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import PreconditionError

from nemo_trt.passes.keep_in_base import KeepInBase

from .computing import graph_of, operators, random

pytestmark = pytest.mark.unit
TEXT = (
    "g (float[2, 4] x) => (float[2, 3] y) <float8e4m3fn z = {0}> "
    "{ q = QuantizeLinear(x, i, z) d = DequantizeLinear(q, i) u = DequantizeLinear(w, s) "
    "y = MatMul(d, u) }"
)


def quantised() -> ir.Model:
    number = np.array(0.5, np.float32)
    return graph_of(
        TEXT, {"i": number, "s": number, "w": random(4, 3).astype(ml_dtypes.float8_e4m3fn)}
    )


def test_no_scale_of_the_group_is_left() -> None:
    model = quantised()
    KeepInBase("i", {"w": "s"}, ir.DataType.FLOAT)(model)
    assert operators(model) == ["MatMul"]
    (product,) = model.graph
    assert [value.name for value in product.inputs if value] == ["x", "w"]
    assert model.graph.initializers["w"].dtype is ir.DataType.FLOAT
    assert not {"i", "s"} & model.graph.initializers.keys()


@pytest.mark.parametrize("names", [("j", "w", "s"), ("i", "v", "s"), ("i", "w", "t")])
def test_a_name_that_is_not_there_is_refused(names: tuple[str, str, str]) -> None:
    scale, weight, weight_scale = names
    with pytest.raises(PreconditionError, match="the initializer"):
        KeepInBase(scale, {weight: weight_scale}, ir.DataType.FLOAT)(quantised())
