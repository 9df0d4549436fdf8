"""Positions become an input: computed from S, they would come from the host in each step."""

import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from .graph_pass import GraphPass, integers, nodes_of, source

POSITIONS = "positions"
"""Input int64 (B, S): the position of every token, write_indices + 0 .. S - 1."""
_TURNED = ("Cast", "Cos", "Mul", "Unsqueeze")


class TakePositions(GraphPass):
    """Gives the rotary angles an input in the place of `write_indices` plus a range."""

    def requires(self, model: ir.Model) -> None:
        """The angles are those of a sum."""
        self._cast(model.graph)

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        if (cast := self._cast(graph)) is not None:
            positions = integers(POSITIONS, "B", "S")
            cast.replace_input_with(0, positions)
            graph.inputs.append(positions)

    def _cast(self, graph: ir.Graph) -> ir.Node | None:
        """The Cast of positions to what angles are computed in; None where there are no angles."""
        node = next(nodes_of(graph, "Cos"), None)
        if node is None:
            return None
        while node is not None and node.op_type in _TURNED:
            before = source(node, 0).producer()
            if node.op_type == "Cast" and before is not None and before.op_type == "Add":
                return node
            node = before
        raise PreconditionError("rotary angles of write_indices plus a range")
