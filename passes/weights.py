"""A graph's weights while passes change it: each knows how its array comes about, none is read.

`attach` makes them from the bundle's files, passes put others in their place, `detach` takes them
out of the graph, to be handed to a runtime one by one.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nemo_trt.errors import BundleError
from nemo_trt.precision import DType

Array = NDArray[np.generic]
_NUMPY = {dtype.onnx_code: np.dtype(dtype.numpy_name) for dtype in DType}


class LazyWeight(ir.LazyTensor):
    """The value of an initializer whose bytes lie outside the graph.

    Attributes:
        read: gives its array; BF16 as uint16, FP8 as uint8.
    """

    def __init__(
        self, name: str, dtype: ir.DataType, shape: ir.Shape, read: Callable[[], Array]
    ) -> None:
        super().__init__(lambda: ir.Tensor(read(), dtype=dtype, name=name), dtype, shape, name=name)
        self.read = read


def weight_of(value: ir.Value | None) -> LazyWeight | None:
    """The weight that a value is, if it is one."""
    found = None if value is None else value.const_value
    return found if isinstance(found, LazyWeight) else None


def set_weight(
    value: ir.Value, dtype: ir.DataType, shape: ir.Shape, read: Callable[[], Array]
) -> None:
    """Make a value a weight, or another one."""
    value.type, value.shape = ir.TensorType(dtype), shape
    value.const_value = LazyWeight(value.name or "", dtype, shape, read)


def attach(model: ir.Model, bundle: Path) -> None:
    """Make every initializer that is stored outside the graph a weight, mapped when it is read."""
    for value in model.graph.initializers.values():
        stored = value.const_value
        if isinstance(stored, ir.ExternalTensor):
            read = _reader(stored, bundle)
            set_weight(value, stored.dtype, ir.Shape(stored.shape), read)


def _reader(stored: ir.ExternalTensor, bundle: Path) -> Callable[[], Array]:
    return lambda: map_weight(stored, bundle)


def map_weight(stored: ir.ExternalTensor, bundle: Path) -> Array:
    """Map a weight's bytes; BF16 comes as uint16, FP8 as uint8.

    Raises:
        BundleError: its file is missing or too short.
    """
    path, shape = bundle / stored.location, tuple(stored.shape.numpy())
    try:
        return np.memmap(path, _NUMPY[int(stored.dtype)], "r", stored.offset or 0, shape)
    except (OSError, ValueError) as error:
        raise BundleError(f"Weight {stored.name} cannot be read: {error}.") from error


def detach(model: ir.Model) -> dict[str, LazyWeight]:
    """Leave the weights' names in the graph, as external data, and return the weights.

    Returns:
        Name -> weight, in the graph's order.
    """
    found = {}
    for value in model.graph.initializers.values():
        if (weight := weight_of(value)) is not None:
            found[weight.name or ""] = weight
            value.const_value = ir.ExternalTensor(
                "weights", 0, weight.nbytes, weight.dtype, shape=weight.shape, name=value.name or ""
            )
    return found
