"""Rounds a promoted graph where a strongly typed BF16 engine rounds, so that a CPU can rehearse it.

Every value that the graph stated as BF16 or FP16 is rounded to that, to nearest and ties to even,
where an operator computed it. So is what TensorRT rounds within an operator (docs/contract.md):
RMSNorm before its weight; attention's query after the scale, its scores and probabilities. FP8 is
rounded by the graph's own QuantizeLinear; what an FP8 product reads is not rounded once more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError, PreconditionError

from .graph_pass import GraphPass, constant, follow, make, nodes_of, source, substitute
from .promote_types import PROMOTED

_FP32 = int(ir.DataType.FLOAT)
_MOVES = {"Concat", "DequantizeLinear", "Expand", "Gather", "GatherND", "Reshape", "Slice"}
_MOVES |= {"Squeeze", "TensorScatter", "Transpose", "Unsqueeze"}
"""Operators whose result is no new number, or, of an FP8 product's input, is never stored."""


class RoundValues(GraphPass):
    """Rounds what nodes compute, where `PromoteTypes` widened it."""

    def requires(self, model: ir.Model) -> None:
        """Every attention states its scale, and how many keys of a row are valid."""
        for node in nodes_of(model.graph, "Attention"):
            if "scale" not in node.attributes or len(node.inputs) < 7:
                raise PreconditionError("attentions with their scale and nonpad_kv_seqlen")

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for node in list(graph):
            if not node.outputs[0].meta.get(PROMOTED) or node.op_type in _MOVES:
                continue
            if node.op_type == "RMSNormalization":
                _norm(graph, node)
            elif node.op_type == "Attention":
                _Attention(graph, node).spell_out()
            else:
                _round(graph, node, node.outputs[0].meta[PROMOTED])

    def ensures(self, model: ir.Model) -> None:
        """No attention is left whole: one could not be rounded within."""
        if any(node.outputs[0].meta.get(PROMOTED) for node in nodes_of(model.graph, "Attention")):
            raise PostconditionError("every attention spelled out")


def rounding(value: ir.Value, name: str, dtype: ir.DataType) -> list[ir.Node]:
    """Nodes that round a value."""
    narrow = make("Cast", [value], f"{name}/narrow", to=int(dtype))
    return [narrow, make("Cast", narrow.outputs, f"{name}/rounded", to=_FP32)]


def _round(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    """Round a node's first output."""
    value = node.outputs[0]
    follow(graph, value, rounding(value, value.name or "", dtype))


def _norm(graph: ir.Graph, node: ir.Node) -> None:
    """RMSNorm that rounds before it multiplies by its weight."""
    weight, value = source(node, 1), node.outputs[0]
    dtype = value.meta[PROMOTED]
    ones = np.ones(tuple(weight.shape.numpy()) if weight.shape else (), np.float32)
    node.replace_input_with(1, constant(graph, f"{value.name}/ones", ir.Tensor(ones)))
    multiply = make("Mul", [value, weight], f"{value.name}/scaled")
    follow(graph, value, [multiply])
    _round(graph, multiply, dtype)
    _round(graph, node, dtype)


class _Attention:
    """Causal grouped attention over the first `nonpad_kv_seqlen` keys of each row, spelled out."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node, self._name = graph, node, node.outputs[0].name
        self._dtype: ir.DataType = node.outputs[0].meta[PROMOTED]
        self._new: list[ir.Node] = []

    def spell_out(self) -> None:
        query, keys, values, lengths = (source(self._node, index) for index in (0, 1, 2, 6))
        num_new = self._add("Shape", [query], "S", start=2, end=3)
        seen = self._mask(num_new, keys, lengths)
        group = self._constant("group", np.array([2], np.int64))
        # Heads of a group share keys: (B, K, G, S, D) against (B, K, 1, D, T).
        kv_heads = self._add("Shape", [keys], "K", start=1, end=2)
        head_dim = self._add("Shape", [query], "D", start=3, end=4)
        keep = self._constant("keep", np.array([0], np.int64))
        rest = self._constant("rest", np.array([-1], np.int64))
        split = self._add("Concat", [keep, kv_heads, rest, num_new, head_dim], "split", axis=0)
        grouped = self._add("Reshape", [query, split], "grouped")
        number = np.float32(self._node.attributes["scale"].as_float())
        scaled = self._add("Mul", [grouped, self._constant("scale", number)], "scaled")
        one_head = self._add("Unsqueeze", [keys, group], "one key head")
        turned = self._add("Transpose", [one_head], "k", perm=[0, 1, 2, 4, 3])
        scores = self._rounded(self._add("MatMul", [self._rounded(scaled), turned], "product"))
        lowest = self._constant("lowest", np.float32(np.finfo(np.float32).min))
        masked = self._add("Where", [seen, scores, lowest], "masked")
        weights = self._rounded(self._add("Softmax", [masked], "softmax", axis=-1))
        one_value = self._add("Unsqueeze", [values, group], "v")
        mixed = self._add("MatMul", [weights, one_value], "mixed")
        shape = self._add("Shape", [query], "shape")
        self._rounded(self._add("Reshape", [mixed, shape], "whole"))
        substitute(self._graph, self._node, self._new)

    def _mask(self, num_new: ir.Value, keys: ir.Value, lengths: ir.Value) -> ir.Value:
        """Query i of S sees key j of T where j <= length - S + i: (B, 1, 1, S, T)."""
        zero, one = (self._constant(f"{n}", np.int64(n)) for n in (0, 1))
        capacity = self._add("Shape", [keys], "T", start=2, end=3)
        scalars = [
            self._add("Squeeze", [size], f"{letter} scalar")
            for letter, size in (("S", num_new), ("T", capacity))
        ]
        i, j = (
            self._add("Range", [zero, size, one], letter)
            for letter, size in zip("ij", scalars, strict=True)
        )
        axes = self._constant("axes", np.array([1, 2, 3], np.int64))
        column = self._constant("column", np.array([1], np.int64))
        first = self._add("Sub", [lengths, num_new], "first")
        of_row = self._add("Unsqueeze", [first, axes], "first of row")
        of_query = self._add("Unsqueeze", [i, column], "i column")
        last = self._add("Add", [of_row, of_query], "last seen")
        seen = self._add("LessOrEqual", [j, last], "seen")
        return self._add("Unsqueeze", [seen, column], "seen by group")

    def _add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        part: str,
        **attributes: Any,
    ) -> ir.Value:
        self._new.append(make(op_type, inputs, f"{self._name}/{part}", **attributes))
        return self._new[-1].outputs[0]

    def _constant(self, part: str, data: object) -> ir.Value:
        return constant(self._graph, f"{self._name}/{part}", ir.Tensor(np.asarray(data)))

    def _rounded(self, value: ir.Value) -> ir.Value:
        self._new += rounding(value, value.name or "", self._dtype)
        return self._new[-1].outputs[0]
