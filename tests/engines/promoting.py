"""A graph that was lowered for a GPU, promoted so that ONNX Runtime's CPU provider computes it."""

from pathlib import Path

import onnx
import onnx_ir as ir

from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.promote_types import PromoteTypes
from nemo_trt.passes.weights import attach, detach


def promoted(stored: onnx.ModelProto, *, half: bool = False) -> onnx.ModelProto:
    """The model in fp32, its weights external as before; with `half`, what is FP16, too."""
    model = ir.from_proto(stored)
    attach(model, Path())  # nothing is read
    apply(model, [PromoteTypes(half=half)])
    detach(model)
    return ir.to_proto(model)
