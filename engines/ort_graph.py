"""What ONNX Runtime sessions share: weights handed over, FP8 scales split off, BF16 promoted."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from nemo_trt import bfloat16
from nemo_trt.precision import DType

from .stored_graph import replace

_BF16 = DType.BF16.onnx_code
_FP8 = DType.FP8.onnx_code


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight to hand to ONNX Runtime under `name`, as an array of the given ONNX type."""

    name: str
    array: NDArray[np.generic]
    onnx_type: int


def session_options(weights: list[Weight]) -> Any:
    """`onnxruntime.SessionOptions` with the weights, which must live until a session is made."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    values = [
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(weight.array, weight.onnx_type)
        for weight in weights
    ]
    options.add_external_initializers([weight.name for weight in weights], values)
    return options


def split_off_weight_scales(
    graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], onnx_type: int
) -> dict[str, NDArray[np.float32]]:
    """Let readers of `DequantizeLinear(FP8 weight)` read the weight, as `onnx_type`.

    Returns:
        Weight name -> its scale, () or (N, 1). `stored` keeps how the weight lies on disk.
    """
    fp8 = {name for name, tensor in stored.items() if tensor.data_type == _FP8}
    constants = {initializer.name: initializer for initializer in graph.initializer}
    scales, renamed, nodes = {}, {}, []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in fp8:
            weight, scale = node.input[:2]
            value = onnx.numpy_helper.to_array(constants[scale]).astype(np.float32)
            scales[weight] = value if value.ndim == 0 else value[:, None]
            renamed[node.output[0]] = weight
        else:
            nodes.append(node)
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    replace(graph.node, nodes)
    for name in scales:
        stored[name] = onnx.TensorProto.FromString(constants[name].SerializeToString())
        constants[name].data_type = onnx_type
    return scales


def promote_types(model: onnx.ModelProto, kept: Collection[str] = ()) -> None:
    """State FP32 wherever the graph states BF16, but for the initializers that are kept."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _BF16:
            value.type.tensor_type.elem_type = DType.FP32.onnx_code
    for initializer in graph.initializer:
        if initializer.name not in kept:
            _promote_tensor(initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == _BF16:
                attribute.i = DType.FP32.onnx_code
            if attribute.HasField("t"):
                _promote_tensor(attribute.t)


def promote_array(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """BF16, which numpy holds as uint16, as float32; anything else as it is."""
    if array.dtype == np.uint16:
        return bfloat16.to_float32(array.view(np.uint16))
    return array


def _promote_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type != _BF16:
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.data_type = DType.FP32.onnx_code
        return
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
