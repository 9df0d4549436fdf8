"""Queries and keys are rotated each for themselves: two kernels for a Concat, one and two Slices.

ONNX Runtime would also make one Split of the Slices, which copies its offsets from the host.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from .graph_pass import GraphPass, constant, make, nodes_of, source, substitute


class RotateSeparately(GraphPass):
    """Takes apart `Concat, Reshape, Transpose, RotaryEmbedding, Slice and Slice`."""

    def requires(self, model: ir.Model) -> None:
        """Every rotation is of that form."""
        for rotary in nodes_of(model.graph, "RotaryEmbedding"):
            joined, *_ = _before(rotary)
            readers = [node.op_type for node in rotary.outputs[0].consumers()]
            if joined is None or joined.op_type != "Concat" or readers != ["Slice", "Slice"]:
                raise PreconditionError("a Concat of queries and keys before each RotaryEmbedding")

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for rotary in nodes_of(graph, "RotaryEmbedding"):
            joined, reshape, transpose = _before(rotary)
            assert joined is not None and reshape is not None and transpose is not None
            head_dim = int(_numbers(source(reshape, 1))[3])
            parts = sorted(rotary.outputs[0].consumers(), key=lambda node: _range(node)[0])
            for part, projected in zip(parts, joined.inputs, strict=True):
                first, end = _range(part)
                name = f"{part.outputs[0].name}.heads"
                shape = ir.Tensor(np.array([0, 0, end - first, head_dim]))
                heads = make("Reshape", [projected, constant(graph, f"{name}.shape", shape)], name)
                turned = ir.node("Transpose", heads.outputs, transpose.attributes, name=f"{name}.T")
                rotated = ir.node(
                    "RotaryEmbedding",
                    [turned.outputs[0], *rotary.inputs[1:]],
                    rotary.attributes,
                    name=f"{name}.rotated",
                )
                turned.outputs[0].name = f"{name}.turned"
                substitute(graph, part, [heads, turned, rotated])


def _before(rotary: ir.Node) -> tuple[ir.Node | None, ir.Node | None, ir.Node | None]:
    """The nodes that give a rotation's input: Concat, Reshape, Transpose."""
    transpose = source(rotary, 0).producer()
    reshape = source(transpose, 0).producer() if transpose else None
    joined = source(reshape, 0).producer() if reshape else None
    return joined, reshape, transpose


def _range(part: ir.Node) -> tuple[int, int]:
    return int(_numbers(source(part, 1))[0]), int(_numbers(source(part, 2))[0])


def _numbers(value: ir.Value) -> np.ndarray:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise PreconditionError(f"a constant {value.name}")
    return tensor.numpy()
