"""A bundle's graph as every lowering reads it, without any runtime's library."""

from pathlib import Path

import onnx

from nemo_trt.errors import BundleError


def read_graph(bundle: Path, graph_file: str) -> onnx.ModelProto:
    """Read a bundle's graph; its weights stay on disk.

    Raises:
        BundleError: it is no readable ONNX graph.
    """
    try:
        return onnx.load(bundle / graph_file, load_external_data=False)
    except Exception as error:  # protobuf raises its own, undocumented kinds
        raise BundleError(f"{bundle / graph_file} is no readable ONNX graph: {error}.") from error
