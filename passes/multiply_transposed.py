"""Products read a weight [N, K] as it is stored, instead of a transposed copy."""

import onnx_ir as ir

from .graph_pass import GraphPass, nodes_of, source, substitute
from .weights import weight_of

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


class MultiplyTransposed(GraphPass):
    """Replaces `MatMul(x, Transpose(weight))` by ONNX Runtime's FusedMatMul."""

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for node in nodes_of(graph, "MatMul"):
            turned = source(node, 1).producer()
            if (
                turned is None
                or turned.op_type != "Transpose"
                or weight_of(turned.inputs[0]) is None
            ):
                continue
            fused = ir.node(
                "FusedMatMul",
                [node.inputs[0], turned.inputs[0]],
                {"transB": 1},
                domain=CONTRIB,
                name=node.name,
            )
            substitute(graph, node, [fused])
