"""FP8 weights become what their readers compute in, so that no node dequantises them."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import PostconditionError

from nemo_trt import bfloat16, e4m3

from .graph_pass import GraphPass, nodes_of, source
from .weights import Array, LazyWeight, set_weight, weight_of


class DequantiseWeights(GraphPass):
    """Replaces `DequantizeLinear(weight, scale)` by the weight, in `to`, under its own name.

    Every number is a product of two exact ones in fp32, and rounded once more if `to` is BF16.
    """

    def __init__(self, to: ir.DataType) -> None:
        super().__init__()
        self._to = to

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for node in nodes_of(graph, "DequantizeLinear"):
            value = source(node, 0)
            if (weight := weight_of(value)) is None:
                continue
            scale = ir.convenience.get_const_tensor(source(node, 1))
            assert scale is not None
            read = self._reader(weight, scale.numpy().astype(np.float32))
            set_weight(value, self._to, ir.Shape(weight.shape), read)
            ir.convenience.replace_all_uses_with(node.outputs[0], value)

    def _reader(self, weight: LazyWeight, scale: NDArray[np.float32]) -> Callable[[], Array]:
        by_row = scale if scale.ndim == 0 else scale[:, None]

        def read() -> Array:
            values = e4m3.to_float32(weight.read().view(np.uint8), by_row)
            return bfloat16.from_float32(values) if self._to is ir.DataType.BFLOAT16 else values

        return read

    def ensures(self, model: ir.Model) -> None:
        """No weight is FP8."""
        for value in model.graph.initializers.values():
            if weight_of(value) is not None and value.dtype is ir.DataType.FLOAT8E4M3FN:
                raise PostconditionError(f"no weight in FP8, it left {value.name}")
