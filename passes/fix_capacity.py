"""The cache's capacity becomes a number: a TensorRT plan holds caches of one size."""

import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from .graph_pass import GraphPass

_T = "T"


class FixCapacity(GraphPass):
    """Puts `capacity` in the place of T in inputs and outputs, and drops shapes that say T."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for value in (*graph.inputs, *graph.outputs):
            dims = [self._capacity if str(dim) == _T else dim for dim in value.shape or ()]
            value.shape = ir.Shape(dims)

    def ensures(self, model: ir.Model) -> None:
        """No input or output says T."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            if any(str(dim) == _T for dim in value.shape or ()):
                raise PostconditionError(f"no size T, it left {value.name}")
