"""Attention's query is scaled in fp32, before the attention.

TensorRT's importer multiplies q and k by sqrt(scale) in the compute dtype. As BF16 constants
sqrt(1/sqrt(128)) and 1/sqrt(128) are off by 1e-4 and more; the scaled query is rounded once.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from nemo_trt import contract

from .graph_pass import GraphPass, constant, make, nodes_of, source


class ScaleQueries(GraphPass):
    """Multiplies every attention's query by its scale, and gives the attention the scale 1."""

    def requires(self, model: ir.Model) -> None:
        """Every attention states its scale; there is a cache, whose dtype is the compute dtype."""
        attentions = list(nodes_of(model.graph, "Attention"))
        if any("scale" not in node.attributes for node in attentions):
            raise PreconditionError("attentions that state their scale")
        if attentions and not _caches(model.graph):
            raise PreconditionError("a cache as an input")

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for node in nodes_of(graph, "Attention"):
            compute = _caches(graph)[0].dtype
            assert compute is not None
            name, number = f"{node.name}.query_scale", node.attributes["scale"].as_float()
            scale = constant(graph, name, ir.Tensor(np.array(number, np.float32)))
            wide = make("Cast", [source(node, 0)], f"{name}.fp32", to=int(ir.DataType.FLOAT))
            scaled = make("Mul", [wide.outputs[0], scale], f"{name}.Mul")
            rounded = make("Cast", scaled.outputs, f"{name}.Cast", to=int(compute))
            graph.insert_before(node, [wide, scaled, rounded])
            node.replace_input_with(0, rounded.outputs[0])
            node.attributes.add(ir.AttrFloat32("scale", 1.0))


def _caches(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.inputs if (value.name or "").startswith(contract.PAST)]
