"""A bundle's graph and weights as every lowering reads them, without any runtime's library."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from nemo_trt.errors import BundleError
from nemo_trt.precision import DType

_NUMPY = {dtype.onnx_code: np.dtype(dtype.numpy_name) for dtype in DType}


def read_graph(bundle: Path, graph_file: str) -> onnx.ModelProto:
    """Read a bundle's graph; its weights stay on disk.

    Raises:
        BundleError: it is no readable ONNX graph.
    """
    try:
        return onnx.load(bundle / graph_file, load_external_data=False)
    except Exception as error:  # protobuf raises its own, undocumented kinds
        raise BundleError(f"{bundle / graph_file} is no readable ONNX graph: {error}.") from error


def external_weights(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The initializers whose bytes lie in the bundle's weight files, by name."""
    return {
        initializer.name: initializer
        for initializer in graph.initializer
        if initializer.data_location == onnx.TensorProto.EXTERNAL
    }


def map_weight(initializer: onnx.TensorProto, bundle: Path) -> NDArray[np.generic]:
    """Map a weight's bytes; BF16 comes as uint16, FP8 as uint8.

    Raises:
        BundleError: its file is missing or too short.
    """
    where = {entry.key: entry.value for entry in initializer.external_data}
    path, offset = bundle / where["location"], int(where["offset"])
    dtype = _NUMPY[initializer.data_type]
    try:
        return np.memmap(path, dtype, "r", offset, tuple(initializer.dims))
    except (OSError, ValueError) as error:
        raise BundleError(f"Weight {initializer.name} cannot be read: {error}.") from error


def replace(field: object, values: list[onnx.NodeProto] | list[onnx.TensorProto]) -> None:
    """Make a repeated field of a graph hold these values, of which some may be its own."""
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
