"""Lengths become an input: computed from S, they would come from the host in each step."""

import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from .graph_pass import GraphPass, integers, nodes_of

LENGTHS = "lengths"
"""Input int64 (B,): keys of a row that are valid after the update, write_indices + S."""
_NONPAD_KV_SEQLEN = 6


class TakeLengths(GraphPass):
    """Gives every attention an input as its `nonpad_kv_seqlen`."""

    def requires(self, model: ir.Model) -> None:
        """Every attention has lengths."""
        for node in nodes_of(model.graph, "Attention"):
            if len(node.inputs) <= _NONPAD_KV_SEQLEN:
                raise PreconditionError("attentions with nonpad_kv_seqlen")

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        attentions = list(nodes_of(graph, "Attention"))
        if attentions:
            lengths = integers(LENGTHS, "B")
            graph.inputs.append(lengths)
            for node in attentions:
                node.replace_input_with(_NONPAD_KV_SEQLEN, lengths)
