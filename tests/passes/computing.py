"""Small graphs in ONNX's text form, as passes get them, and what ONNX Runtime computes of them."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from nemo_trt.passes.weights import detach, set_weight

_BITS = {np.dtype(ml_dtypes.bfloat16): np.uint16, np.dtype(ml_dtypes.float8_e4m3fn): np.uint8}
_FROM_BITS = {int(ir.DataType.BFLOAT16): ml_dtypes.bfloat16}
_FROM_BITS[int(ir.DataType.FLOAT8E4M3FN)] = ml_dtypes.float8_e4m3fn
HEAD = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>\n'
RANDOM = np.random.default_rng(7)


def random(*shape: int) -> Any:
    """Numbers in fp32."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def bf16(*shape: int) -> Any:
    return random(*shape).astype(ml_dtypes.bfloat16)


def graph_of(text: str, constants: dict[str, Any] | None = None, **weights: Any) -> ir.Model:
    """A model from `g (inputs) => (outputs) { nodes }`: weights are lazy, constants are not.

    Nodes are named by their first output.
    """
    stored = onnx.parser.parse_model(HEAD + text)
    for node in stored.graph.node:
        node.name = node.output[0]
    model = ir.from_proto(stored)
    free = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in (constants or {}).items():
        free[name].const_value = ir.Tensor(array, name=name)
        free[name].type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        model.graph.register_initializer(free[name])
    for name, array in weights.items():
        value = free[name]
        bits = array.view(_BITS.get(array.dtype, array.dtype))
        dtype = ir.DataType.from_numpy(array.dtype)
        set_weight(value, dtype, ir.Shape(array.shape), lambda bits=bits: bits)  # type: ignore[misc]
        model.graph.register_initializer(value)
    return model


def computed(model: ir.Model, **feeds: Any) -> list[Any]:
    """The outputs, by ONNX Runtime's CPU provider; the model stays as it is."""
    copy = model.clone()
    arrays = {name: weight.read() for name, weight in detach(copy).items()}
    for name, array in arrays.items():
        value = copy.graph.initializers[name]
        kind = _FROM_BITS.get(int(value.dtype or 0))
        value.const_value = ir.Tensor(np.asarray(array).view(kind) if kind else np.asarray(array))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(copy).SerializeToString(), options)
    return list(session.run(None, feeds))


def operators(model: ir.Model) -> list[str]:
    """Of the nodes, sorted."""
    return sorted(node.op_type for node in model.graph)
