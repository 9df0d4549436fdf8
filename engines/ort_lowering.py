"""Lowers a bundle's graph in memory for ONNX Runtime's CPU provider: BF16 and FP8 become fp32.

The bundle on disk is not touched: the artifact that ships is the artifact that is run.
"""

from pathlib import Path

import onnx
import onnx_ir as ir

from nemo_trt.passes.attend_in_fp16 import AttendInFp16
from nemo_trt.passes.dequantise_weights import DequantiseWeights
from nemo_trt.passes.graph_pass import GraphPass, apply
from nemo_trt.passes.keep_tables import KeepTables
from nemo_trt.passes.multiply_transposed import CONTRIB, MultiplyTransposed
from nemo_trt.passes.promote_types import PromoteTypes
from nemo_trt.passes.round_values import RoundValues
from nemo_trt.passes.transpose_weights import TransposeWeights
from nemo_trt.passes.weights import attach
from nemo_trt.precision import DType

from .ort_graph import Weight, hand_over
from .stored_graph import read_graph


def lower(
    bundle: Path, graph_file: str, *, rounding: DType | None = None
) -> tuple[bytes, list[Weight]]:
    """Read a bundle's graph and weights for a provider without BF16 kernels.

    - Everything that computes in BF16 computes in FP32.
    - FP8 weights are dequantised here, once; activations are rounded to FP8 by the graph.
    - Products in fp32 read a weight [N, K] as it is stored: ONNX Runtime packs it as it packs a
      transposed one. Without such a product (fp16), and where rounding is put in, the weight is
      transposed here, once.
    - A table that only a Gather reads stays as it is stored, mapped from the file; the gathered
      rows are promoted.

    Memory: the weights but for the gathered table, in the promoted dtype.

    Args:
        rounding: round as an engine does (`passes.round_values`) whose attention and cache are in
            this dtype, BF16 or FP16.

    Returns:
        The serialised graph, its weights marked external, and every such weight.

    Raises:
        BundleError: the graph or a weight cannot be read.
    """
    return lower_model(read_graph(bundle, graph_file), bundle, rounding=rounding)


def lower_model(
    stored: onnx.ModelProto, bundle: Path, *, rounding: DType | None = None
) -> tuple[bytes, list[Weight]]:
    """`lower` of a graph, or of a piece of one, whose weights lie in `bundle`."""
    model = ir.from_proto(stored)
    attach(model, bundle)
    half = any(value.dtype is ir.DataType.FLOAT16 for value in model.graph.initializers.values())
    turn: list[GraphPass] = [TransposeWeights()]
    if not (rounding or half):
        turn.insert(0, MultiplyTransposed())
        model.graph.opset_imports[CONTRIB] = 1
    passes: list[GraphPass] = [
        DequantiseWeights(ir.DataType.FLOAT),
        *turn,
        *([AttendInFp16()] if rounding is DType.FP16 else []),
        KeepTables(),
        PromoteTypes(half=bool(rounding)),
    ]
    if rounding:
        passes.append(RoundValues())
    apply(model, passes)
    lowered, weights = hand_over(model)
    return lowered.SerializeToString(), weights
