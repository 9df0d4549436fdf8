"""Finds the longest cache that fused attention serves, by compiling attention alone."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.errors import BuildError
from nemo_trt.precision import DType
from nemo_trt.progress import Silent

from .compile import Compiler
from .engine_record import BuildOptions
from .lowering import LoweredGraph
from .profiles import PREFILL, decode_name
from .toolkit import Log

_STEP = 512  # tokens; caches are probed in multiples of it


def require_fused(options: BuildOptions, longest: int | None) -> None:
    """Refuse a cache that is too long for fused attention before anything is compiled.

    Args:
        longest: see `Budget.fused_tokens`; where it is None, compiling tells.

    Raises:
        BuildError: the cache is longer; the message names the longest that has fused attention.
    """
    if longest and not options.allow_unfused and options.max_seq_len > longest:
        raise _unfused(options, f"--max-seq-len {longest}", f"{longest} tokens are the most")


def explain_unfused(bundle: Bundle, compiler: Compiler, profiles: tuple[str, ...]) -> BuildError:
    """The error of a cache without fused attention: it names the longest that has it."""
    profiles = tuple(name for name in profiles if name in (PREFILL, decode_name(1)))
    longest = _longest_fused(bundle, compiler, profiles)
    if longest:
        remedy, most = f"--max-seq-len {longest}", f"{longest} tokens are the most of those tried"
    else:
        remedy, most = "another GPU", "none that was tried has"
    return _unfused(compiler.options, remedy, most)


def _unfused(options: BuildOptions, remedy: str, most: str) -> BuildError:
    return BuildError(
        f"{options.target} has no fused attention for a cache of {options.max_seq_len} tokens a "
        f"row: {most}. Build with {remedy}, with --attention paged, or with --allow-unfused: "
        "correct, but each step then writes keys and values expanded to all query heads."
    )


def _longest_fused(bundle: Bundle, compiler: Compiler, profiles: tuple[str, ...]) -> int:
    """By halving: compile attention alone, for shorter caches."""
    low, high = 0, -(-compiler.options.max_seq_len // _STEP)
    compiler.progress.phase("probe shorter contexts")
    while high - low > 1:
        middle = (low + high) // 2
        fused = all(is_fused(bundle, compiler, middle * _STEP, profile) for profile in profiles)
        low, high = (middle, high) if fused else (low, middle)
    return low * _STEP


def is_fused(bundle: Bundle, compiler: Compiler, capacity: int, profile: str) -> bool:
    """Whether attention alone, over a cache of `capacity` tokens a row, is fused in a profile."""
    probe = replace(
        compiler,
        options=replace(compiler.options, max_seq_len=capacity),
        graph=attention_graph(
            bundle.config, compiler.options.attention_dtype(bundle.precision), capacity
        ),
        timing_cache=None,
        progress=Silent(),
    )
    try:
        probe.compile(Path(os.devnull), (profile,), Log(probe.toolkit))
    except BuildError:
        return False
    return True


def attention_graph(config: ModelConfig, dtype: DType, capacity: int) -> LoweredGraph:
    """One layer's cache update and attention, with the contract's names, a query as large as the
    hidden state would make it, and no weights to speak of."""
    code = dtype.onnx_code
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
