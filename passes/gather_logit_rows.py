"""Rows are gathered from (B * S, C): GatherND's CUDA kernel copies from the host in each step."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from nemo_trt import contract

from .graph_pass import GraphPass, constant, integers, make, nodes_of, source, substitute

LOGIT_ROWS = "logit_rows"
"""Input int64 (B, N), in place of logit_indices: row * S + index, of all tokens in one line."""


class GatherLogitRows(GraphPass):
    """Replaces GatherND before the head by Reshape and Gather, and its indices by an input."""

    def requires(self, model: ir.Model) -> None:
        """There is one GatherND, of values whose width is known."""
        found = list(nodes_of(model.graph, "GatherND"))
        if len(found) > 1 or any(width_of(source(node, 0)) is None for node in found):
            raise PreconditionError("one GatherND before the head")

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for gather in nodes_of(graph, "GatherND"):
            hidden, name = source(gather, 0), gather.name
            shape = ir.Tensor(np.array([-1, width_of(hidden)]))
            flat = make(
                "Reshape", [hidden, constant(graph, f"{name}.shape", shape)], f"{name}.flat"
            )
            rows = integers(LOGIT_ROWS, "B", "N")
            taken = make("Gather", [flat.outputs[0], rows], f"{name}.rows", axis=0)
            substitute(graph, gather, [flat, taken])
            kept = [value for value in graph.inputs if value.name != contract.LOGIT_INDICES]
            graph.remove(gather, safe=True)
            graph.inputs[:] = [*kept, rows]


def width_of(value: ir.Value) -> int | None:
    """The last dimension, if it is known."""
    last = value.shape[-1] if value.shape else None
    return last if isinstance(last, int) else None
