"""Nothing in a traced graph is rounded that the reference keeps in fp32."""

import math
from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from nemo_trt.errors import ExportError
from nemo_trt.export.exactness import require_exact
from nemo_trt.export.samples import SHAPES
from nemo_trt.export.trace import trace_decoder
from nemo_trt.precision import DType

pytestmark = pytest.mark.model

CONFIG = replace(SHAPES["nemo-tiny"], vocab_size=64, head_dim=128, rms_norm_eps=1e-5)


@pytest.fixture(scope="module")
def traced() -> ir.Model:
    return trace_decoder(CONFIG, DType.BF16)


@pytest.fixture
def model(traced: ir.Model) -> ir.Model:
    return traced.clone()


def nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


@pytest.mark.parametrize("head_dim", [64, 112, 128])
def test_the_softmax_scale_is_exact_for_every_head_size(head_dim: int) -> None:
    model = trace_decoder(replace(CONFIG, head_dim=head_dim), DType.BF16)
    for node in nodes(model, "Attention"):
        scale = node.attributes["scale"].as_float()
        assert abs(scale * math.sqrt(head_dim) - 1) < 1e-7
        query = node.inputs[0]
        assert query is not None and query.producer().op_type == "Slice"  # type: ignore[union-attr]


def scale_in_bf16(model: ir.Model) -> None:
    """What the exporter did before contract version 2."""
    scale = float(np.float32(ml_dtypes.bfloat16(1 / math.sqrt(CONFIG.head_dim))))
    nodes(model, "Attention")[1].attributes["scale"] = ir.AttrFloat32("scale", scale)


def scaled_query(model: ir.Model) -> None:
    attention = nodes(model, "Attention")[0]
    query = attention.inputs[0]
    product = ir.node("Mul", [query, query])
    model.graph.insert_before(attention, product)
    attention.replace_input_with(0, product.outputs[0])


def no_scale(model: ir.Model) -> None:
    del nodes(model, "Attention")[0].attributes["scale"]


def angles_in_bf16(model: ir.Model) -> None:
    value = nodes(model, "Cos")[0].inputs[0]
    assert value is not None
    value.type = ir.TensorType(ir.DataType.BFLOAT16)


def positions_in_bf16(model: ir.Model) -> None:
    """Rounded far upstream of the angles: the cast of the positions."""
    cast = next(n for n in nodes(model, "Cast") if n.outputs[0].dtype == ir.DataType.FLOAT)
    cast.outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)


def norm_stashes_in_bf16(model: ir.Model) -> None:
    node = nodes(model, "RMSNormalization")[2]
    node.attributes["stash_type"] = ir.AttrInt64("stash_type", ir.DataType.BFLOAT16.value)


def rounded_epsilon(model: ir.Model) -> None:
    node = nodes(model, "RMSNormalization")[0]
    epsilon = float(np.float32(ml_dtypes.bfloat16(CONFIG.rms_norm_eps)))
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)


def constant_in_bf16(model: ir.Model) -> None:
    tensor = ir.Tensor(np.array(0.5, ml_dtypes.bfloat16), name="half")
    constant = ir.node("Constant", [], {"value": ir.AttrTensor("value", tensor)})
    constant.outputs[0].dtype = tensor.dtype
    model.graph.insert_before(model.graph[0], constant)


def initializer_in_bf16(model: ir.Model) -> None:
    tensor = ir.Tensor(np.array(0.5, ml_dtypes.bfloat16), name="half")
    value = ir.Value(name="half", const_value=tensor, type=ir.TensorType(tensor.dtype))
    model.graph.initializers["half"] = value


FAULTS: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "scale rounded to BF16": (scale_in_bf16, "must have the scale"),
    "query scaled beforehand": (scaled_query, "must not be scaled before"),
    "no scale": (no_scale, "must have the scale"),
    "angles in BF16": (angles_in_bf16, "must be fp32"),
    "positions in BF16": (positions_in_bf16, "must be fp32"),
    "norm in BF16": (norm_stashes_in_bf16, "must compute in fp32"),
    "epsilon rounded to BF16": (rounded_epsilon, "must have the epsilon"),
    "constant in BF16": (constant_in_bf16, "must be fp32, got BFLOAT16"),
    "initializer in BF16": (initializer_in_bf16, "must be fp32, got BFLOAT16"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_rounded_is_refused(fault: str, model: ir.Model) -> None:
    require_exact(model, CONFIG)
    plant, message = FAULTS[fault]
    plant(model)
    with pytest.raises(ExportError, match=message):
        require_exact(model, CONFIG)
