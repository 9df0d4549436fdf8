"""A sum and the norm that follows it become one kernel."""

import onnx_ir as ir

from .graph_pass import GraphPass, nodes_of, source, take_over
from .multiply_transposed import CONTRIB


class FuseSkips(GraphPass):
    """Replaces Add and RMSNormalization by ONNX Runtime's SkipSimplifiedLayerNormalization."""

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for norm in nodes_of(graph, "RMSNormalization"):
            add = source(norm, 0).producer()
            if add is None or add.op_type != "Add":
                continue
            fused = ir.node(
                "SkipSimplifiedLayerNormalization",
                [*add.inputs, norm.inputs[1]],
                {"epsilon": norm.attributes["epsilon"].as_float()},
                domain=CONTRIB,
                num_outputs=4,
                name=norm.name,
            )
            graph.insert_after(add, fused)
            take_over(norm.outputs[0], fused.outputs[0])
            take_over(add.outputs[0], fused.outputs[3])
            for unread in fused.outputs[1:3]:
                unread.name = ""
            graph.remove([norm, add], safe=True)
