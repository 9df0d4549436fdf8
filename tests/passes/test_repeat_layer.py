"""What may be repeated. That it is repeated rightly, tests/export/test_trace.py holds against a
trace of all layers."""

import onnx_ir as ir
import pytest
from onnx_ir.passes import PreconditionError

from nemo_trt.passes.repeat_layer import RepeatLayer

from .computing import graph_of

pytestmark = pytest.mark.unit


def layers(count: int, name: str = "model.layers.0.Neg") -> ir.Model:
    inputs = ", ".join(f"float[2] k{layer}" for layer in range(count))
    model = graph_of(f"g ({inputs}) => (float[2] y) {{ y = Neg(k0) }}")
    for layer, value in enumerate(model.graph.inputs):
        value.name = f"past_key_values.{layer}.key"
    next(iter(model.graph)).name = name
    return model


def test_two_layers_are_not_repeated() -> None:
    with pytest.raises(PreconditionError, match="one layer"):
        RepeatLayer(3)(layers(2))


def test_nodes_that_do_not_say_their_layer_are_not_repeated() -> None:
    with pytest.raises(PreconditionError, match=r"model\.layers\.0"):
        RepeatLayer(3)(layers(1, name="Neg"))
