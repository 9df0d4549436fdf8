"""Lowers a bundle's graph in memory for ONNX Runtime's CPU provider: BF16 and FP8 become fp32.

The bundle on disk is not touched: the artifact that ships is the artifact that is run.
"""

from pathlib import Path

import numpy as np
import onnx

from nemo_trt import e4m3
from nemo_trt.precision import DType

from .ort_graph import Weight, promote_array, promote_types, split_off_weight_scales
from .ort_rounding import bf16_values, insert_rounding
from .stored_graph import external_weights, map_weight, read_graph, replace

_BF16, _FP32 = DType.BF16.onnx_code, DType.FP32.onnx_code


def lower(bundle: Path, graph_file: str, *, rounding: bool = False) -> tuple[bytes, list[Weight]]:
    """Read a bundle's graph and weights for a provider without BF16 kernels.

    - Everything that computes in BF16 computes in FP32.
    - FP8 weights are dequantised here, once; activations are rounded to FP8 by the graph.
    - A weight behind a Transpose is transposed here, once: ONNX Runtime would do it with a second
      copy in hand.
    - A table that only a Gather reads stays as it is stored, mapped from the file; the gathered
      rows are promoted.

    Memory: the weights but for the gathered table, in the promoted dtype.

    Args:
        rounding: round every BF16 value to BF16 (`ort_rounding`).

    Returns:
        The serialised graph, its weights marked external, and every such weight.

    Raises:
        BundleError: the graph or a weight cannot be read.
    """
    return lower_model(read_graph(bundle, graph_file), bundle, rounding=rounding)


def lower_model(
    model: onnx.ModelProto, bundle: Path, *, rounding: bool = False
) -> tuple[bytes, list[Weight]]:
    """`lower` of a graph, or of a piece of one, whose weights lie in `bundle`; it is altered."""
    graph = model.graph
    stored = external_weights(graph)
    scales = split_off_weight_scales(graph, stored, _FP32)
    transposed = _split_off_transposes(graph, stored)
    tables = _keep_tables(graph, stored)
    narrow = bf16_values(graph)
    promote_types(model, tables)
    if rounding:
        insert_rounding(graph, narrow)
    weights = []
    for initializer in graph.initializer:
        if initializer.data_location != onnx.TensorProto.EXTERNAL:
            continue
        name = transposed.get(initializer.name, initializer.name)
        array = map_weight(stored[name], bundle)
        if name in scales:
            array = e4m3.to_float32(array.view(np.uint8), scales[name])
        if initializer.name in transposed:
            array = np.ascontiguousarray(array.T)
        if initializer.name not in tables:
            array = promote_array(array)
        weights.append(Weight(initializer.name, array, initializer.data_type))
    return model.SerializeToString(), weights


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
    replace(graph.node, kept)
    replace(graph.initializer, initializers)
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
    replace(graph.node, nodes)
    return tables
