"""What FP8 asks of a traced graph: the names of its scales, and one reader of each."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SCALED = ("QuantizeLinear", "DequantizeLinear")


def scale_names(group: str, weights: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The names of a group's scales in the decoder: of its input, and of each weight."""
    return f"{group}_input.scale", tuple(f"{weight}_scale" for weight in weights)


def set_scales(graph: ir.Graph, scales: Mapping[str, NDArray[np.float32]]) -> None:
    """Give every scale its value, in BF16, and every node that reads one a scale of its own.

    A scale that several nodes share crashes the compiler of some TensorRT versions.

    Args:
        graph: traced with FP8 groups.
        scales: the decoder's name of every scale -> () or (N,).
    """
    for name, value in scales.items():
        scale = graph.initializers[name]
        scale.const_value = ir.Tensor(value.astype(ml_dtypes.bfloat16), name=name)
    for node in [node for node in graph if node.op_type in _SCALED]:
        shared = node.inputs[1]
        assert shared is not None and shared.const_value is not None
        if len(list(shared.uses())) > 1:
            name = f"{node.name}.scale"
            own = ir.Value(
                name=name,
                shape=shared.shape,
                type=shared.type,
                const_value=ir.Tensor(shared.const_value.numpy(), name=name),
            )
            graph.initializers.add(own)
            node.replace_input_with(1, own)
