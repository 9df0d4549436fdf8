"""A group of matrices of a traced FP8 graph stays in the base dtype."""

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from .graph_pass import GraphPass, source


class KeepInBase(GraphPass):
    """Takes a group's quantisation out of the graph again.

    Args of the constructor: the name of the scale of the group's input; weight -> the name of its
    scale; what the weights are in.
    """

    def __init__(self, input_scale: str, weights: Mapping[str, str], base: ir.DataType) -> None:
        super().__init__()
        self._input_scale, self._weights, self._base = input_scale, weights, base

    def requires(self, model: ir.Model) -> None:
        """One QuantizeLinear reads the scale; each weight has one reader."""
        initializers = model.graph.initializers
        for name in (self._input_scale, *self._weights, *self._weights.values()):
            if name not in initializers:
                raise PreconditionError(f"the initializer {name}")
        for name in self._weights:
            if [node.op_type for node in initializers[name].consumers()] != ["DequantizeLinear"]:
                raise PreconditionError(f"one DequantizeLinear of {name}")

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        scale = graph.initializers[self._input_scale]
        quantize = next(node for node, _ in scale.uses() if node.op_type == "QuantizeLinear")
        (dequantize,) = quantize.outputs[0].consumers()
        ir.convenience.replace_all_uses_with(dequantize.outputs[0], source(quantize, 0))
        removed = [dequantize, quantize]
        for name in self._weights:
            weight = graph.initializers[name]
            (node,) = weight.consumers()
            ir.convenience.replace_all_uses_with(node.outputs[0], weight)
            weight.type = ir.TensorType(self._base)  # a new one: repeated layers share theirs
            removed.append(node)
        graph.remove(removed, safe=True)
        for name in (self._input_scale, *self._weights.values()):
            del graph.initializers[name]
