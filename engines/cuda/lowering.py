"""Lowers a bundle's graph in memory for ONNX Runtime's CUDA provider.

The bundle on disk is not touched. docs/cuda.md has the reason of every pass, in this order.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from nemo_trt.engines.ort_graph import Weight, hand_over
from nemo_trt.engines.stored_graph import read_graph
from nemo_trt.passes.dequantise_weights import DequantiseWeights
from nemo_trt.passes.fuse_skips import FuseSkips
from nemo_trt.passes.gather_logit_rows import GatherLogitRows
from nemo_trt.passes.graph_pass import apply, foreign
from nemo_trt.passes.multiply_transposed import CONTRIB, MultiplyTransposed
from nemo_trt.passes.promote_types import PromoteTypes
from nemo_trt.passes.quantise_in_fp32 import QuantiseInFp32
from nemo_trt.passes.rotate_separately import RotateSeparately
from nemo_trt.passes.take_lengths import TakeLengths
from nemo_trt.passes.take_positions import TakePositions
from nemo_trt.passes.weights import attach
from nemo_trt.precision import DType

_REQUIRED = ("Cos", "Attention", "GatherND", "MatMul", "RotaryEmbedding", "Add")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredGraph:
    """A graph for ONNX Runtime, and its weights.

    Attributes:
        model: its weights marked external. Inputs: input_ids, write_indices, the caches, and
            those of the passes `take_positions`, `take_lengths` and `gather_logit_rows`.
        weights: as they lie in the bundle's files, but for those that had to be altered.
    """

    model: onnx.ModelProto
    weights: list[Weight]


def lower(bundle: Path, graph_file: str, base: DType) -> LoweredGraph:
    """Read a bundle's graph and weights for the CUDA provider.

    Args:
        base: what activations and caches are in: the bundle's own base dtype, or FP32, which
            promotes a BF16 bundle; the CPU provider computes that too.

    Memory: FP8 weights, dequantised; all others stay mapped from their files unless promoted.

    Raises:
        BundleError: the graph or a weight cannot be read, or it is not of the contract's form.
    """
    model = read_graph(bundle, graph_file)
    present = {node.op_type for node in model.graph.node}
    if missing := [name for name in _REQUIRED if name not in present]:
        raise foreign(f"the operator {missing[0]}")
    return lower_model(model, bundle, base)


def lower_model(stored: onnx.ModelProto, bundle: Path, base: DType) -> LoweredGraph:
    """`lower` of a graph, or of a piece of one, whose weights lie in `bundle`."""
    model = ir.from_proto(stored)
    attach(model, bundle)
    passes = [
        DequantiseWeights(ir.DataType(base.onnx_code)),
        TakePositions(),
        TakeLengths(),
        GatherLogitRows(),
        MultiplyTransposed(),
        RotateSeparately(),
        FuseSkips(),
        QuantiseInFp32() if base is DType.BF16 else PromoteTypes(),
    ]
    apply(model, passes)
    model.graph.opset_imports[CONTRIB] = 1
    lowered, weights = hand_over(model)
    del lowered.graph.value_info[:]
    return LoweredGraph(model=lowered, weights=weights)
