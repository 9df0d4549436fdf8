"""BF16 becomes fp32, for a runtime without BF16 kernels."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from nemo_trt import bfloat16

from .graph_pass import GraphPass
from .keep_tables import KEPT
from .weights import Array, LazyWeight, set_weight, weight_of

_BF16, _FP32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT
PROMOTED = "nemo_trt.promoted"
"""Marks, in `Value.meta`, what a node computes in fp32 and the bundle's graph states as BF16."""


class PromoteTypes(GraphPass):
    """States fp32 wherever the graph states BF16, but for what is kept (`keep_tables`).

    Weights and constants are widened, which is exact. What is computed is rounded less.
    """

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for value in (*graph.inputs, *graph.initializers.values()):
            self._promote(value)
        for node in graph:
            for value in node.outputs:
                if self._promote(value):
                    value.meta[PROMOTED] = True
            for name, attribute in list(node.attributes.items()):
                if name in ("to", "dtype") and attribute.value == int(_BF16):
                    node.attributes.add(ir.AttrInt64(name, int(_FP32)))
                elif attribute.type is ir.AttributeType.TENSOR:
                    node.attributes.add(ir.AttrTensor(name, _wide(attribute.as_tensor())))

    def _promote(self, value: ir.Value) -> bool:
        if value.dtype is not _BF16 or value.meta.get(KEPT):
            return False
        value.type = ir.TensorType(_FP32)
        if (weight := weight_of(value)) is not None:
            set_weight(value, _FP32, ir.Shape(weight.shape), _reader(weight))
        elif value.const_value is not None:
            value.const_value = _wide(value.const_value)
        return True

    def ensures(self, model: ir.Model) -> None:
        """Nothing but what is kept is BF16."""
        graph = model.graph
        computed = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *computed):
            if value.dtype is _BF16 and not value.meta.get(KEPT):
                raise PostconditionError(f"nothing in BF16, it left {value.name}")


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype is not _BF16:
        return tensor
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _reader(weight: LazyWeight) -> Callable[[], Array]:
    return lambda: bfloat16.to_float32(weight.read().view(np.uint16))
