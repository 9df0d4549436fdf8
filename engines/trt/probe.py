"""The smallest graph with our attention: how long a cache may be is probed with it."""

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from nemo_trt import contract
from nemo_trt.config import ModelConfig
from nemo_trt.precision import DType

from .lowering import LoweredGraph


def attention_graph(config: ModelConfig, precision: DType, capacity: int) -> LoweredGraph:
    """One layer's cache update and attention, with the contract's names, a query as large as the
    hidden state would make it, and no weights to speak of."""
    code = precision.base.onnx_code
    cache = ("B", config.num_kv_heads, capacity, config.head_dim)

    def value(name: str, elem_type: int, *shape: int | str | None) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, elem_type, shape)

    past = [contract.past_name(0, kind) for kind in ("key", "value")]
    present = [contract.present_name(0, kind) for kind in ("key", "value")]
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    table = np.ones((2, width), np.float32)
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    nodes = [
        helper.make_node("Gather", ["table", contract.INPUT_IDS], ["wide"]),
        helper.make_node("Cast", ["wide"], ["x"], to=code),
        helper.make_node("Split", ["x", "sizes"], ["q", "k", "v"], axis=-1),
    ]
    constants = [
        helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.tobytes(), raw=True),
        helper.make_tensor("sizes", TensorProto.INT64, [3], [h * config.head_dim for h in heads]),
        helper.make_tensor("flat", TensorProto.INT64, [3], [0, 0, -1]),
    ]
    for name, count in zip("qkv", heads, strict=True):
        shape = helper.make_tensor(f"{name}.heads", TensorProto.INT64, [4], [0, 0, count, -1])
        constants.append(shape)
        nodes.append(helper.make_node("Reshape", [name, f"{name}.heads"], [f"{name}.r"]))
        nodes.append(helper.make_node("Transpose", [f"{name}.r"], [f"{name}.t"], perm=[0, 2, 1, 3]))
    for new, old, updated in zip(("k.t", "v.t"), past, present, strict=True):
        nodes.append(
            helper.make_node(
                "TensorScatter", [old, new, contract.WRITE_INDICES], [updated], axis=-2
            )
        )
    nodes += [
        helper.make_node(
            "Attention", ["q.t", *present, "", "", "", contract.WRITE_INDICES], ["mixed"],
            is_causal=1, scale=1.0,
        ),
        helper.make_node("Transpose", ["mixed"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["rows", "flat"], ["hidden"]),
        helper.make_node("Unsqueeze", [contract.LOGIT_INDICES, "minus"], ["where"]),
        helper.make_node("GatherND", ["hidden", "where"], ["taken"], batch_dims=1),
        helper.make_node("Cast", ["taken"], [contract.LOGITS], to=TensorProto.FLOAT),
    ]  # fmt: skip
    constants.append(helper.make_tensor("minus", TensorProto.INT64, [1], [-1]))
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            value(contract.INPUT_IDS, TensorProto.INT64, "B", "S"),
            value(contract.WRITE_INDICES, TensorProto.INT64, "B"),
            value(contract.LOGIT_INDICES, TensorProto.INT64, "B", "N"),
            *(value(name, code, *cache) for name in past),
        ],
        [
            value(contract.LOGITS, TensorProto.FLOAT, "B", "N", None),
            *(value(name, code, *cache) for name in present),
        ],
        constants,
    )
    opset = helper.make_opsetid("", contract.OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=contract.IR_VERSION)
    return LoweredGraph(
        model=model.SerializeToString(), weights={}, num_layers=1, num_fp8_products=0
    )
