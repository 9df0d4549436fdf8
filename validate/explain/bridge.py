"""BF16 and FP8 across Polygraphy, whose files and ONNX Runtime runner hold NumPy arrays.

NumPy has neither type. Files and ONNX Runtime get models with fp32 ends. TensorRT updates caches in
place, so they keep their type, and it gets PyTorch tensors, which Polygraphy's runner takes too.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from nemo_trt.engines.trt.attention.place import LENGTHS
from nemo_trt.precision import DType

from .places import Array

_NARROW = (TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN)
_TORCH = {
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.FLOAT: torch.float32,
    TensorProto.INT64: torch.int64,
}


def wide_ends(model: onnx.ModelProto) -> None:
    """Make every BF16 or FP8 input and output fp32, with a Cast behind or before it."""
    graph = model.graph
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    for values, inward in ((graph.input, True), (graph.output, False)):
        for value in values:
            narrow = value.type.tensor_type.elem_type
            if narrow not in _NARROW:
                continue
            inner = f"{value.name}/stored"
            for node in graph.node:
                for names in (node.input, node.output):
                    names[:] = [inner if name == value.name else name for name in names]
            ends = ([value.name], [inner]) if inward else ([inner], [value.name])
            to = narrow if inward else TensorProto.FLOAT
            (before if inward else after).append(helper.make_node("Cast", *ends, to=to))
            value.type.tensor_type.elem_type = DType.FP32.onnx_code
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)


def to_tensors(piece: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A piece's inputs as PyTorch tensors of its own types, and TensorRT's int32 `LENGTHS`."""
    tensors = {
        one.name: torch.from_numpy(np.ascontiguousarray(feeds[one.name])).to(
            _TORCH[one.type.tensor_type.elem_type]
        )
        for one in piece.graph.input
    }
    return {**tensors, LENGTHS: torch.from_numpy(np.asarray(feeds[LENGTHS], np.int32))}


def to_arrays(outputs: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """What a piece gave, in fp32, which holds every BF16 and FP16 number."""
    return {name: tensor.float().cpu().numpy() for name, tensor in outputs.items()}
