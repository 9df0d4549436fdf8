"""Which operators ONNX Runtime's CUDA provider computes in which types, as far as we use them.

Read in ONNX Runtime's docs/OperatorKernels.md (CUDAExecutionProvider, at commit 001d12d2623f) and
confirmed by the provider itself: onnxruntime-gpu 1.31.1 places every node of a lowered graph on
CUDA. docs/cuda.md says how that was seen without a GPU.
"""

import onnx

from nemo_trt.passes.multiply_transposed import CONTRIB
from nemo_trt.precision import DType

_FLOATS = frozenset({"bfloat16", "float16", "float"})
_WIDE = frozenset({"float16", "float"})
_FIXED = _FLOATS | {"int64"}

KERNELS: dict[tuple[str, str], frozenset[str]] = {
    ("", "Add"): _FIXED,
    ("", "Attention"): _FLOATS,
    ("", "Cast"): _FIXED | {"float8e4m3fn"},
    ("", "Concat"): _FIXED,
    ("", "Cos"): _WIDE,
    ("", "DequantizeLinear"): frozenset({"float8e4m3fn"}),
    ("", "Gather"): _FIXED,
    ("", "GatherND"): _FIXED,
    ("", "MatMul"): _FLOATS,
    ("", "Mul"): _FIXED,
    ("", "QuantizeLinear"): _WIDE,
    ("", "RMSNormalization"): _FLOATS,
    ("", "Range"): frozenset({"float", "int64"}),
    ("", "Reshape"): _FIXED,
    ("", "RotaryEmbedding"): _FLOATS,
    ("", "Shape"): _FIXED,
    ("", "Sigmoid"): _FLOATS,
    ("", "Sin"): _WIDE,
    ("", "Slice"): _FIXED,
    ("", "Squeeze"): _FIXED,
    ("", "TensorScatter"): _FIXED,
    ("", "Transpose"): _FIXED,
    ("", "Unsqueeze"): _FIXED,
    (CONTRIB, "FusedMatMul"): _FLOATS,
    (CONTRIB, "QuickGelu"): _FLOATS,
    (CONTRIB, "SkipSimplifiedLayerNormalization"): _FLOATS,
}
"""(domain, operator) -> types that its first input may have, at the opset of the contract."""

_SCALES = {"QuantizeLinear": _WIDE, "DequantizeLinear": _WIDE}
_NAMES = {
    DType.BF16.onnx_code: "bfloat16",
    DType.FP16.onnx_code: "float16",
    DType.FP32.onnx_code: "float",
    DType.FP8.onnx_code: "float8e4m3fn",
    DType.INT64.onnx_code: "int64",
}


def without_kernel(model: onnx.ModelProto) -> list[str]:
    """The nodes of a graph that the CUDA provider has no kernel for, in words, without repeats."""
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types.update({initializer.name: initializer.data_type for initializer in graph.initializer})
    found = []
    for node in graph.node:
        if node.op_type != "Constant":  # folded when the session is made
            first = _NAMES.get(types.get(node.input[0], 0), "unknown")
            allowed = KERNELS.get((node.domain, node.op_type), frozenset())
            scale = (
                _NAMES.get(types.get(node.input[1], 0), "unknown") if len(node.input) > 1 else ""
            )
            if first not in allowed:
                found.append(f"{node.op_type} in {first}")
            elif scale not in _SCALES.get(node.op_type, {scale}):
                found.append(f"{node.op_type} with a scale in {scale}")
        for output in node.output:
            types[output] = _result_type(node, types)
    return list(dict.fromkeys(found))


def _result_type(node: onnx.NodeProto, types: dict[str, int]) -> int:
    """The ONNX type of a node's outputs; of the operators above all outputs have one type."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    match node.op_type:
        case "Cast":
            return int(attributes["to"].i)
        case "Shape":
            return DType.INT64.onnx_code
        case "QuantizeLinear":
            return DType.FP8.onnx_code
        case "DequantizeLinear":
            return types.get(node.input[1], 0)
        case "Constant":
            if "value" in attributes:
                return int(attributes["value"].t.data_type)
            floats = {"value_float", "value_floats"}
            return (DType.FP32 if floats & attributes.keys() else DType.INT64).onnx_code
        case _:
            return types.get(node.input[0], 0)
