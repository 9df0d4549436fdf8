"""BF16 becomes fp32, for a runtime without BF16 kernels; FP16 too, where rounding is rehearsed."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from nemo_trt import bfloat16

from .graph_pass import GraphPass
from .keep_tables import KEPT
from .weights import Array, LazyWeight, set_weight, weight_of

_BF16, _FP16, _FP32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.FLOAT
PROMOTED = "nemo_trt.promoted"
"""In `Value.meta`: the dtype that the graph stated of what a node now computes in fp32."""


class PromoteTypes(GraphPass):
    """States fp32 wherever the graph states BF16, but for what is kept (`keep_tables`).

    Weights and constants are widened, which is exact. What is computed is rounded less.

    Args:
        half: the same of FP16.
    """

    def __init__(self, *, half: bool = False) -> None:
        super().__init__()
        self._narrow = (_BF16, _FP16) if half else (_BF16,)
        self._codes = [int(dtype) for dtype in self._narrow]

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for value in (*graph.inputs, *graph.initializers.values()):
            self._promote(value)
        for node in graph:
            for value in node.outputs:
                stated = value.dtype
                if self._promote(value):
                    value.meta[PROMOTED] = stated
            for name, attribute in list(node.attributes.items()):
                if name in ("to", "dtype") and attribute.value in self._codes:
                    node.attributes.add(ir.AttrInt64(name, int(_FP32)))
                elif attribute.type is ir.AttributeType.TENSOR:
                    node.attributes.add(ir.AttrTensor(name, self._wide(attribute.as_tensor())))

    def _promote(self, value: ir.Value) -> bool:
        if value.dtype not in self._narrow or value.meta.get(KEPT):
            return False
        value.type = ir.TensorType(_FP32)
        if (weight := weight_of(value)) is not None:
            set_weight(value, _FP32, ir.Shape(weight.shape), _reader(weight))
        elif value.const_value is not None:
            value.const_value = self._wide(value.const_value)
        return True

    def _wide(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.dtype not in self._narrow:
            return tensor
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    def ensures(self, model: ir.Model) -> None:
        """Nothing but what is kept is of those dtypes."""
        graph = model.graph
        computed = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *computed):
            if value.dtype in self._narrow and not value.meta.get(KEPT):
                raise PostconditionError(f"nothing in {value.dtype}, it left {value.name}")


def _reader(weight: LazyWeight) -> Callable[[], Array]:
    if weight.dtype is _FP16:
        return lambda: weight.read().astype(np.float32)
    return lambda: bfloat16.to_float32(weight.read().view(np.uint16))
