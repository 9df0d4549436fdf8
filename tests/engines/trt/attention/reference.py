"""The plugin's node in ONNX's own operators: ONNX Runtime then computes a graph that holds it."""

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from nemo_trt.contract import OPSET
from nemo_trt.engines.trt.attention.place import DOMAIN
from nemo_trt.engines.trt.attention.plugin import FIELDS, FP8, INPUTS, NAME, OUTPUTS
from nemo_trt.engines.trt.lowering import LoweredGraph
from tests.engines.tail import without_candidates


def runnable(graph: LoweredGraph, head_dim: int, page: int) -> ort.InferenceSession:
    """A lowered graph with the plugin on ONNX Runtime, its weights inside."""
    model = without_candidates(onnx.ModelProto.FromString(graph.model))
    for one in model.graph.initializer:
        if one.name in graph.weights:
            del one.external_data[:]
            one.data_location = onnx.TensorProto.DEFAULT
            one.raw_data = graph.weights[one.name].tobytes()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    whole = with_reference(model, head_dim, page).SerializeToString()
    return ort.InferenceSession(whole, options, providers=["CPUExecutionProvider"])


def with_reference(model: onnx.ModelProto, head_dim: int, page: int) -> onnx.ModelProto:
    """The model, in which the plugin is a function: pages gathered, updated, read, put back."""
    nodes = [
        helper.make_node("Cast", ["starts"], ["from"], to=TensorProto.INT64),
        helper.make_node("Cast", ["lengths"], ["until"], to=TensorProto.INT64),
        helper.make_node("Cast", ["table"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Constant", [], ["last"], value_ints=[-1]),
        helper.make_node("Unsqueeze", ["wide", "last"], ["spots"]),
        helper.make_node("Constant", [], ["dense"], value_ints=[0, 0, -1, head_dim]),
        helper.make_node("Constant", [], ["paged"], value_ints=[0, 0, -1, page, head_dim]),
    ]
    for pool in ("keys", "values"):
        nodes += [
            helper.make_node("Gather", [pool, "table"], [f"{pool}.held"], axis=0),
            helper.make_node("Transpose", [f"{pool}.held"], [f"{pool}.rows"], perm=[0, 2, 1, 3, 4]),
            helper.make_node("Reshape", [f"{pool}.rows", "dense"], [f"{pool}.dense"]),
            helper.make_node(
                "TensorScatter", [f"{pool}.dense", f"new_{pool}", "from"], [f"{pool}.now"], axis=-2
            ),
            helper.make_node("Reshape", [f"{pool}.now", "paged"], [f"{pool}.pages"]),
            helper.make_node(
                "Transpose", [f"{pool}.pages"], [f"{pool}.back"], perm=[0, 2, 1, 3, 4]
            ),
            helper.make_node("ScatterND", [pool, "spots", f"{pool}.back"], [f"{pool}.out"]),
        ]
    attention = helper.make_node(
        "Attention", ["query", "keys.now", "values.now", "", "", "", "until"], ["out"], is_causal=1
    )
    scale = attention.attribute.add()
    scale.name, scale.ref_attr_name, scale.type = "scale", FIELDS[0], onnx.AttributeProto.FLOAT
    nodes.append(attention)
    outputs = [name if name == "out" else f"{name}.out" for name in OUTPUTS]
    function = helper.make_function(
        DOMAIN, NAME, list(INPUTS), outputs, nodes, [helper.make_opsetid("", OPSET)],
        [*FIELDS, FP8, "plugin_version", "plugin_namespace"],
    )  # fmt: skip
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.functions.append(function)
    return made
