"""The explanation names the layer, the place and the part of it that a planted fault is in."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from nemo_trt import bfloat16
from nemo_trt.bundle import Bundle
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.precision import DType
from nemo_trt.validate.explain.explain import Explanation, explain
from nemo_trt.validate.explain.findings import LIMITS
from nemo_trt.validate.explain.runners import OnCpu, Runner
from nemo_trt.validate.sequences import TokenSequence
from nemo_trt.validate.texts import HELD_OUT

from . import faults

pytestmark = pytest.mark.model


def of(graph: onnx.GraphProto, layer: int, name: str) -> onnx.NodeProto:
    (node,) = (n for n in graph.node if n.name == f"model.layers.{layer}.{name}")
    return node


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    (found,) = (a for a in node.attribute if a.name == name)
    return found


def norm_eps(graph: onnx.GraphProto) -> None:
    attribute(of(graph, 7, "input_layernorm.RMSNormalization"), "epsilon").f = 1e-3


def softmax_scale(graph: onnx.GraphProto) -> None:
    attribute(of(graph, 9, "self_attn.Attention"), "scale").f *= 1.02


def one_kv_head_read_for_all(graph: onnx.GraphProto) -> None:
    node = of(graph, 13, "self_attn.Attention")
    rolled = numpy_helper.from_array(np.array([1, 2, 0]), "fault.heads")
    graph.initializer.append(rolled)
    faults.insert(
        graph,
        node,
        helper.make_node("Gather", [node.input[2], rolled.name], ["fault.values"], axis=1),
    )
    node.input[2] = "fault.values"


def write_one_too_far(graph: onnx.GraphProto) -> None:
    shifted(graph, of(graph, 17, "self_attn.TensorScatter"), 2, "fault.write")


def mask_sees_one_more(graph: onnx.GraphProto) -> None:
    shifted(graph, of(graph, 19, "self_attn.Attention"), 6, "fault.mask")


def shifted(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, name: str) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), f"{name}.one"))
    faults.insert(graph, node, helper.make_node("Add", [node.input[index], f"{name}.one"], [name]))
    node.input[index] = name


def gate_is_squared(graph: onnx.GraphProto) -> None:
    node = of(graph, 23, "mlp.Mul")
    node.input[1] = node.input[0]


def residual_of_the_norm(graph: onnx.GraphProto) -> None:
    of(graph, 27, "Add").input[0] = "model.layers.27.input_layernorm.RMSNormalization"


def rotated_backwards(graph: onnx.GraphProto) -> None:
    node = of(graph, 29, "self_attn.RotaryEmbedding")
    faults.insert(graph, node, helper.make_node("Neg", [node.input[2]], ["fault.sin"]))
    node.input[2] = "fault.sin"


GRAPH = (
    norm_eps,
    softmax_scale,
    one_kv_head_read_for_all,
    write_one_too_far,
    mask_sees_one_more,
    gate_is_squared,
    residual_of_the_norm,
    rotated_backwards,
)


def in_graph(graph: onnx.GraphProto) -> None:
    for edit in GRAPH:
        edit(graph)


def multiplied(array: np.ndarray, where: Any, factor: float) -> None:
    array[where] = bfloat16.from_float32(bfloat16.to_float32(array[where]) * np.float32(factor))


def in_weights(weights: dict[str, np.ndarray]) -> None:
    layer = "model.layers.{}.{}.weight".format
    weights[layer(1, "self_attn.v_proj")][...] = 0
    query = weights[layer(3, "self_attn.q_proj")]
    halves = np.array(query).reshape(-1, 2, 32, query.shape[1])
    query[...] = halves.swapaxes(1, 2).reshape(query.shape)
    multiplied(weights[layer(5, "self_attn.k_proj")], slice(64, 128), 1.0625)
    gate, up = weights[layer(11, "mlp.gate_proj")], weights[layer(11, "mlp.up_proj")]
    held = np.array(gate)
    gate[...], up[...] = up, held
    multiplied(weights[layer(15, "mlp.down_proj")], 100, -1)
    multiplied(weights[layer(21, "post_attention_layernorm")], slice(5, 6), 2)
    multiplied(weights[layer(25, "self_attn.o_proj")], np.s_[:, ::2], 0.98)


PLANTED = {  # where: what the words must hold
    "layer 1 self_attn.v_proj": "all zeros",
    "layer 3 self_attn.q_proj": "off",
    "layer 5 self_attn.k_proj": "too large in channels 64 to 127 (kv head 1)",
    "layer 7 input_layernorm": "too small",
    "layer 9 self_attn.attention": "off",
    "layer 11 mlp.gate_proj": "off",
    "layer 11 mlp.up_proj": "off",
    "layer 13 self_attn.attention": "off",
    "layer 15 mlp.down_proj": "in channel 100",
    "layer 17 self_attn.key_cache": "off",
    "layer 19 self_attn.attention": "off",
    "layer 21 post_attention_layernorm": "100 % too large in channel 5",
    "layer 23 mlp.swiglu": "off",
    "layer 25 self_attn.o_proj": "off",
    "layer 27 residual": "too small",
    "layer 29 self_attn.rotated_q": "off",
    "layer 29 self_attn.rotated_k": "off",
}


def explained(
    checkpoint: Path,
    bundle: Path,
    *,
    start: int = 0,
    tokens: int = 48,
    runner: Runner | None = None,
) -> Explanation:
    opened = open_checkpoint(checkpoint)
    ids = range(10, 10 + tokens)
    if opened.tokenizer_files:
        ids = open_tokenizer(checkpoint).encode(HELD_OUT[0], bos=True)[:tokens]
    first = TokenSequence(name="text", tokens=tuple(ids))
    chosen = TokenSequence(name="far", tokens=first.tokens[:8], start=start) if start else first
    return explain(Bundle.open(bundle), opened, first, chosen, runner=runner)


@pytest.mark.e2e
def test_each_of_seventeen_faults_is_named_by_layer_and_place(
    sample_bundle: Any, tmp_path: Path
) -> None:
    faulty = faults.copy_with(sample_bundle.bundle, tmp_path / "b", in_graph, in_weights)
    result = explained(sample_bundle.checkpoint, faulty)
    found = {one.where: one.words for one in result.found}
    assert set(found) == set(PLANTED), found
    assert {where: words for where, words in found.items() if PLANTED[where] not in words} == {}
    assert result.sentences()[0].startswith("layer 1 self_attn.v_proj: all zeros")
    assert (
        result.free[0] < LIMITS["fp32"] < result.free[1]
    )  # layers that feed each other show it too


def test_the_bundle_without_a_fault_is_explained_as_sound(tiny: Any) -> None:
    result = explained(tiny.checkpoint, tiny.bundle, tokens=20)
    assert result.found == () and max(result.free) < LIMITS["fp32"]
    assert "is sound at every place" in result.sentences()[0]
    far = explained(tiny.checkpoint, tiny.bundle, tokens=20, start=1000)
    assert far.found == () and far.start == 1000


WHOLE_GRAPH: dict[str, tuple[faults.GraphEdit, int, str]] = {
    "rope theta": (faults.theta_off_by_one_percent, 0, "rotary.cos"),
    "positions in FP16": (faults.positions_in_fp16, 2500, "rotary.cos"),
    "logits of the wrong position": (faults.logits_of_the_position_before, 0, "lm_head"),
    "kv heads rolled": (faults.kv_heads_rolled, 0, "layer 0 self_attn.attention"),
    "two layers swapped": (faults.two_layers_swapped, 0, "layer 0 input_layernorm"),
}


@pytest.mark.parametrize("name", WHOLE_GRAPH)
def test_a_fault_of_the_whole_graph_is_named_where_it_is_first_met(
    name: str, tiny: Any, tmp_path: Path
) -> None:
    edit, start, where = WHOLE_GRAPH[name]
    faulty = faults.copy_with(tiny.bundle, tmp_path / "b", edit)
    result = explained(tiny.checkpoint, faulty, start=start, tokens=20)
    assert result.sentences()[0].startswith(f"{where}: "), result.sentences()


@pytest.mark.parametrize(
    ("fault", "attention"),
    [
        (None, DType.FP16),
        ((slice(0, 8), 1.0625), DType.BF16),
        ((slice(None), 0.975), DType.FP16),
    ],
)
def test_a_rehearsal_of_bf16_has_bf16s_limit(
    fault: tuple[slice, float] | None, attention: DType, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "b"
    export_bundle(tiny_checkpoint, bundle, precision=DType.BF16)
    if fault:
        name = "model.layers.1.self_attn.k_proj.weight"
        change = lambda weights: multiplied(weights[name], *fault)  # noqa: E731
        bundle = faults.copy_with(bundle, tmp_path / "faulty", weights=change)
    runner = OnCpu(Bundle.open(bundle), rounding=attention)
    result = explained(tiny_checkpoint, bundle, tokens=20, runner=runner)
    assert [one.where for one in result.found] == ["layer 1 self_attn.k_proj"] * bool(fault)
    assert max(one.position_error for one in result.places) > 1e-3
    assert f"rounded as bf16 is, attention as {attention}" in result.runner
    assert {one.limit for one in result.places} == {LIMITS["bf16"], 4 * LIMITS["bf16"]}
