"""A table that is only gathered from stays as it is stored: mapped, and not promoted as a whole."""

import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from .graph_pass import GraphPass, follow, make, nodes_of, source
from .weights import weight_of

_BF16 = ir.DataType.BFLOAT16
KEPT = "nemo_trt.kept"
"""Marks, in `Value.meta`, what `PromoteTypes` leaves in BF16."""


class KeepTables(GraphPass):
    """Casts what is gathered from a BF16 weight that nothing else reads to fp32."""

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for node in nodes_of(graph, "Gather"):
            table = source(node, 0)
            if table.dtype is not _BF16 or weight_of(table) is None:
                continue
            if all(one.op_type == "Gather" and index == 0 for one, index in table.uses()):
                table.meta[KEPT] = True
                gathered = node.outputs[0]
                cast = make(
                    "Cast", [gathered], f"{node.name}.stored.Cast", to=int(ir.DataType.FLOAT)
                )
                follow(graph, gathered, [cast])
                gathered.meta[KEPT] = True

    def ensures(self, model: ir.Model) -> None:
        """Whatever reads a table that is kept reads it by a Gather that is cast."""
        for value in model.graph.initializers.values():
            if not value.meta.get(KEPT):
                continue
            for node, _ in value.uses():
                if {reader.op_type for reader in node.outputs[0].consumers()} != {"Cast"}:
                    raise PostconditionError(f"a Cast behind {node.name}")
