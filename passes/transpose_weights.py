"""Transposed weights are stored transposed, which a runtime would do with a second copy in hand."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from .graph_pass import GraphPass, nodes_of, source
from .weights import Array, LazyWeight, set_weight, weight_of


class TransposeWeights(GraphPass):
    """Replaces `Transpose(weight)` by a weight of its own. The first may have other readers."""

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for node in nodes_of(graph, "Transpose"):
            if (weight := weight_of(source(node, 0))) is None:
                continue
            turned = ir.Value(name=node.outputs[0].name)
            node.outputs[0].name = f"{turned.name}:before"
            shape = ir.Shape(list(reversed(weight.shape)))
            set_weight(turned, weight.dtype, shape, _reader(weight))
            graph.register_initializer(turned)
            ir.convenience.replace_all_uses_with(node.outputs[0], turned)

    def ensures(self, model: ir.Model) -> None:
        """No weight is transposed by a node."""
        for node in nodes_of(model.graph, "Transpose"):
            if weight_of(node.inputs[0]) is not None:
                raise PostconditionError(f"no Transpose of a weight, it left {node.name}")


def _reader(weight: LazyWeight) -> Callable[[], Array]:
    return lambda: np.ascontiguousarray(weight.read().T)
