"""Lowers a bundle's graph in memory for ONNX Runtime's CPU provider: BF16 and FP8 become fp32.

The bundle on disk is not touched: the artifact that ships is the artifact that is run.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from nemo_trt import bfloat16, e4m3
from nemo_trt.errors import BundleError
from nemo_trt.precision import DType

_BF16, _FP32, _FP8 = (dtype.onnx_code for dtype in (DType.BF16, DType.FP32, DType.FP8))
_NUMPY = {dtype.onnx_code: np.dtype(dtype.numpy_name) for dtype in DType}


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight to hand to ONNX Runtime under `name`, as an array of the given ONNX type."""

    name: str
    array: NDArray[np.generic]
    onnx_type: int


def lower(bundle: Path, graph_file: str) -> tuple[bytes, list[Weight]]:
    """Read a bundle's graph and weights for a provider without BF16 kernels.

    - Everything that computes in BF16 computes in FP32.
    - FP8 weights are dequantised here, once; activations are rounded to FP8 by the graph.
    - A weight behind a Transpose is transposed here, once: ONNX Runtime would do it with a second
      copy in hand.
    - A table that only a Gather reads stays as it is stored, mapped from the file; the gathered
      rows are promoted.

    Memory: the weights but for the gathered table, in the promoted dtype.

    Returns:
        The serialised graph, its weights marked external, and every such weight.

    Raises:
        BundleError: the graph or a weight cannot be read.
    """
    try:
        model = onnx.load(bundle / graph_file, load_external_data=False)
    except Exception as error:  # protobuf raises its own, undocumented kinds
        raise BundleError(f"{bundle / graph_file} is no readable ONNX graph: {error}.") from error
    graph = model.graph
    stored = {
        initializer.name: initializer
        for initializer in graph.initializer
        if initializer.data_location == onnx.TensorProto.EXTERNAL
    }
    scales = _split_off_weight_scales(graph, stored)
    transposed = _split_off_transposes(graph, stored)
    tables = _keep_tables(graph, stored)
    _promote_types(model, tables)
    weights = []
    for initializer in graph.initializer:
        if initializer.data_location != onnx.TensorProto.EXTERNAL:
            continue
        name = transposed.get(initializer.name, initializer.name)
        array = _read(stored[name], bundle)
        if name in scales:
            array = e4m3.to_float32(array.view(np.uint8), scales[name])
        if initializer.name in transposed:
            array = np.ascontiguousarray(array.T)
        if array.dtype == np.uint16 and initializer.name not in tables:
            array = bfloat16.to_float32(array.view(np.uint16))
        weights.append(Weight(initializer.name, array, initializer.data_type))
    return model.SerializeToString(), weights


def _split_off_weight_scales(
    graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]
) -> dict[str, NDArray[np.float32]]:
    """Let readers of `DequantizeLinear(FP8 weight)` read the weight, as FP32; return its scale.

    A scale is () or (N, 1).
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
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)
    for name in scales:
        stored[name] = onnx.TensorProto.FromString(constants[name].SerializeToString())
        constants[name].data_type = _FP32
    return scales


def _split_off_transposes(
    graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]
) -> dict[str, str]:
    """Replace `Transpose(weight)` by an initializer of its own; return it -> the weight's name."""
    transposed: dict[str, str] = {}
    constants = {initializer.name: initializer for initializer in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in stored:
            transposed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    still_read = {name for node in kept for name in node.input}
    initializers = [i for i in graph.initializer if i.name not in stored or i.name in still_read]
    for name, weight in transposed.items():
        copy = onnx.TensorProto()
        copy.CopyFrom(constants[weight])
        copy.name = name
        copy.dims[:] = reversed(copy.dims)
        initializers.append(copy)
    for field, values in ((graph.node, kept), (graph.initializer, initializers)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    return transposed


def _keep_tables(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]) -> set[str]:
    """Cast what is gathered from a BF16 table that nothing else reads; return those tables."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tables = {
        name
        for name, tensor in stored.items()
        if tensor.data_type == _BF16
        and name in readers
        and all(n.op_type == "Gather" and n.input[0] == name for n in readers[name])
    }
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            gathered = node.output[0]
            node.output[0] = f"{gathered}.stored"
            cast = onnx.helper.make_node("Cast", [node.output[0]], [gathered], to=_FP32)
            nodes.append(cast)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return tables


def _read(initializer: onnx.TensorProto, bundle: Path) -> NDArray[np.generic]:
    """Map a weight's bytes; BF16 comes as uint16."""
    where = {entry.key: entry.value for entry in initializer.external_data}
    path, offset = bundle / where["location"], int(where["offset"])
    dtype = _NUMPY[initializer.data_type]
    try:
        return np.memmap(path, dtype, "r", offset, tuple(initializer.dims))
    except (OSError, ValueError) as error:
        raise BundleError(f"Weight {initializer.name} cannot be read: {error}.") from error


def _promote_types(model: onnx.ModelProto, tables: set[str]) -> None:
    """State FP32 wherever the graph states BF16, but for the tables."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _BF16:
            value.type.tensor_type.elem_type = _FP32
    for initializer in graph.initializer:
        if initializer.name not in tables:
            _promote_tensor(initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == _BF16:
                attribute.i = _FP32
            if attribute.HasField("t"):
                _promote_tensor(attribute.t)


def _promote_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type != _BF16:
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.data_type = _FP32
        return
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
