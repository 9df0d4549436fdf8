"""Rounds a promoted graph where a strongly typed BF16 engine rounds, so that a CPU can rehearse it.

Every value that the bundle's graph states as BF16 is rounded to BF16, to nearest and ties to even,
where an operator computed it. So is what TensorRT rounds within an operator (docs/contract.md):
RMSNorm before its weight; attention's query after the scale, its scores and probabilities. FP8 is
rounded by the graph's own QuantizeLinear; what an FP8 product reads is not rounded once more.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_BF16, _FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT
_MOVES = {"Concat", "DequantizeLinear", "Expand", "Gather", "GatherND", "Reshape", "Slice"}
_MOVES |= {"Squeeze", "TensorScatter", "Transpose", "Unsqueeze"}
"""Operators whose result is no new number, or, of an FP8 product's input, is never stored."""


def bf16_values(graph: onnx.GraphProto) -> set[str]:
    """The values that a graph states as BF16."""
    stated = (*graph.value_info, *graph.output)
    return {value.name for value in stated if value.type.tensor_type.elem_type == _BF16}


def insert_rounding(graph: onnx.GraphProto, rounded: set[str]) -> None:
    """Round the values of these names in a graph that computes them in fp32."""
    written: list[onnx.NodeProto] = []
    for node in list(graph.node):
        if node.output[0] not in rounded or node.op_type in _MOVES:
            written.append(node)
        elif node.op_type == "RMSNormalization":
            written += _norm(graph, node)
        elif node.op_type == "Attention":
            written += _attention(graph, node)
        else:
            written += _rounded(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in written]
    del graph.node[:]
    graph.node.extend(copies)


def _round(source: str, target: str) -> Iterator[onnx.NodeProto]:
    narrow = f"{target}/bf16"
    yield helper.make_node("Cast", [source], [narrow], to=_BF16)
    yield helper.make_node("Cast", [narrow], [target], to=_FP32)


def _rounded(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A node whose first output is rounded."""
    name = node.output[0]
    node.output[0] = f"{name}/exact"
    yield node
    yield from _round(node.output[0], name)


def _constant(graph: onnx.GraphProto, name: str, value: object) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _norm(graph: onnx.GraphProto, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """RMSNorm that rounds before it multiplies by its weight."""
    name, weight = node.output[0], node.input[1]
    (dims,) = (tuple(i.dims) for i in graph.initializer if i.name == weight)
    node.input[1] = _constant(graph, f"{name}/ones", np.ones(dims, np.float32))
    node.output[0] = f"{name}/normal"
    yield from _rounded(node)
    multiply = helper.make_node("Mul", [f"{name}/normal", weight], [name])
    yield from _rounded(multiply)


def _attention(graph: onnx.GraphProto, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Causal grouped attention over the first `nonpad_kv_seqlen` keys of each row, spelled out."""
    name = node.output[0]
    query, keys, values, *_, lengths = node.input
    scale = next(a.f for a in node.attribute if a.name == "scale")

    def value(part: str) -> str:
        return f"{name}/{part}"

    def make(op_type: str, inputs: list[str], part: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op_type, inputs, [value(part)], **attributes)

    def constant(part: str, data: object) -> str:
        return _constant(graph, value(part), data)

    zero = constant("zero", np.int64(0))
    one = constant("one", np.int64(1))
    # The mask: query i of S sees key j of T where j <= length - S + i.
    yield make("Shape", [query], "S", start=2, end=3)
    yield make("Shape", [keys], "T", start=2, end=3)
    yield make("Squeeze", [value("S")], "S scalar")
    yield make("Squeeze", [value("T")], "T scalar")
    yield make("Range", [zero, value("S scalar"), one], "i")
    yield make("Range", [zero, value("T scalar"), one], "j")
    yield make("Sub", [lengths, value("S")], "first")
    axes = constant("axes", np.array([1, 2, 3], np.int64))
    yield make("Unsqueeze", [value("first"), axes], "first of row")
    column = constant("column", np.array([1], np.int64))
    yield make("Unsqueeze", [value("i"), column], "i column")
    yield make("Add", [value("first of row"), value("i column")], "last seen")
    yield make("LessOrEqual", [value("j"), value("last seen")], "seen")
    # Heads of a group share keys: (B, K, G, S, D) against (B, K, 1, D, T).
    yield make("Shape", [keys], "K", start=1, end=2)
    yield make("Shape", [query], "D", start=3, end=4)
    keep = constant("keep", np.array([0], np.int64))
    rest = constant("rest", np.array([-1], np.int64))
    split = [keep, value("K"), rest, value("S"), value("D")]
    yield make("Concat", split, "split shape", axis=0)
    yield make("Reshape", [query, value("split shape")], "grouped")
    yield make("Mul", [value("grouped"), constant("scale", np.float32(scale))], "scaled")
    yield from _round(value("scaled"), value("q"))
    group = constant("group", np.array([2], np.int64))
    yield make("Unsqueeze", [keys, group], "one key head")
    yield make("Transpose", [value("one key head")], "k", perm=[0, 1, 2, 4, 3])
    yield make("MatMul", [value("q"), value("k")], "product")
    yield from _round(value("product"), value("scores"))
    yield make("Unsqueeze", [value("seen"), column], "seen by group")
    lowest = constant("lowest", np.float32(np.finfo(np.float32).min))
    yield make("Where", [value("seen by group"), value("scores"), lowest], "masked")
    yield make("Softmax", [value("masked")], "softmax", axis=-1)
    yield from _round(value("softmax"), value("p"))
    yield make("Unsqueeze", [values, group], "v")
    yield make("MatMul", [value("p"), value("v")], "mixed")
    yield make("Shape", [query], "shape")
    yield make("Reshape", [value("mixed"), value("shape")], "whole")
    yield from _round(value("whole"), name)
