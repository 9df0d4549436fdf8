"""Seeded faults: each turns a good bundle into one that computes something else."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nemo_trt import bfloat16
from nemo_trt.digest import quick_digest, sha256_file
from nemo_trt.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest, WeightFile
from nemo_trt.precision import DType
from nemo_trt.safetensors import read_layout
from nemo_trt.tensors import LazyTensor

GraphEdit = Callable[[onnx.GraphProto], None]
WeightEdit = Callable[[dict[str, np.ndarray]], None]


def copy_with(
    bundle: Path, target: Path, graph: GraphEdit | None = None, weights: WeightEdit | None = None
) -> Path:
    """A copy of a bundle, edited, whose manifest vouches for the edit as an exporter's would."""
    manifest = Manifest.from_json((bundle / MANIFEST_FILE).read_text(encoding="utf-8"))
    (target / "weights").mkdir(parents=True)
    model = onnx.load(bundle / GRAPH_FILE, load_external_data=False)
    if graph:
        graph(model.graph)
    onnx.save(model, target / GRAPH_FILE)
    files = []
    for weight in manifest.weights:
        if weights:
            shutil.copyfile(bundle / weight.file, target / weight.file)
            refs = read_layout(target / weight.file).values()
            weights(
                {
                    ref.name: np.memmap(ref.path, _bits(ref), "r+", ref.offset, ref.shape)
                    for ref in refs
                }
            )
        else:
            os.link(bundle / weight.file, target / weight.file)
        path = target / weight.file
        files.append(
            WeightFile(
                file=weight.file, num_bytes=path.stat().st_size, quick_digest=quick_digest(path)
            )
        )
    changed = replace(
        manifest,
        graph_sha256=sha256_file(target / GRAPH_FILE),
        weights=tuple(files),
        tokenizer_files=(),
    )
    (target / MANIFEST_FILE).write_text(changed.to_json(), encoding="utf-8")
    return target


def _bits(ref: LazyTensor) -> type[np.generic]:
    """What a number's bits are edited as."""
    return np.uint8 if ref.dtype is DType.FP8 else np.uint16


def float32(ref: LazyTensor) -> np.ndarray:
    """All of a tensor's numbers."""
    return bfloat16.to_float32(ref.read()) if ref.dtype is DType.BF16 else ref.read().astype("f4")


def nodes(graph: onnx.GraphProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op_type]


def insert(graph: onnx.GraphProto, before: onnx.NodeProto, *new: onnx.NodeProto) -> None:
    index = list(graph.node).index(before)
    for node in reversed(new):
        graph.node.insert(index, node)


def frequencies(graph: onnx.GraphProto) -> onnx.AttributeProto:
    """The constant of RoPE's inverse frequencies."""
    (found,) = (
        attribute
        for node in nodes(graph, "Constant")
        for attribute in node.attribute
        if attribute.name == "value_floats"
    )
    return found


def theta_off_by_one_percent(graph: onnx.GraphProto) -> None:
    attribute = frequencies(graph)
    exponents = np.arange(len(attribute.floats)) / len(attribute.floats)
    attribute.floats[:] = np.array(attribute.floats) * 1.01**-exponents


def positions_in_fp16(graph: onnx.GraphProto) -> None:
    """Exact up to position 2048, so that only positions far out show it."""
    multiply = next(n for n in graph.node if n.op_type == "Cos").input[0]
    node = next(n for n in graph.node if n.output[0] == multiply)
    source = node.input[0]
    insert(
        graph,
        node,
        helper.make_node("Cast", [source], ["fault.fp16"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["fault.fp16"], ["fault.fp32"], to=TensorProto.FLOAT),
    )
    node.input[0] = "fault.fp32"


def norm_eps_of_a_thousandth(graph: onnx.GraphProto) -> None:
    for node in nodes(graph, "RMSNormalization"):
        next(a for a in node.attribute if a.name == "epsilon").f = 1e-3


def _shifted(graph: onnx.GraphProto, op_type: str, index: int, by: int) -> None:
    """Add `by` to an integer input of every node of a kind, never below 0."""
    graph.initializer.append(numpy_helper.from_array(np.array(by, np.int64), "fault.by"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "fault.zero"))
    first, *_ = found = nodes(graph, op_type)
    source = first.input[index]
    insert(
        graph,
        first,
        helper.make_node("Add", [source, "fault.by"], ["fault.sum"]),
        helper.make_node("Max", ["fault.sum", "fault.zero"], ["fault.shifted"]),
    )
    for node in found:
        node.input[index] = "fault.shifted"


def cache_write_off_by_one(graph: onnx.GraphProto) -> None:
    _shifted(graph, "TensorScatter", 2, 1)


def causal_mask_off_by_one(graph: onnx.GraphProto) -> None:
    _shifted(graph, "Attention", 6, 1)


def logits_of_the_position_before(graph: onnx.GraphProto) -> None:
    _shifted(graph, "GatherND", 1, -1)


def kv_heads_rolled(graph: onnx.GraphProto) -> None:
    attentions = nodes(graph, "Attention")
    caches = [v for v in graph.input if v.name.endswith(".key")]
    heads = caches[0].type.tensor_type.shape.dim[1].dim_value
    rolled = np.roll(np.arange(heads), 1)
    graph.initializer.append(numpy_helper.from_array(rolled, "fault.heads"))
    for node in attentions:
        for index in (1, 2):
            name = f"{node.input[index]}.rolled"
            insert(
                graph,
                node,
                helper.make_node("Gather", [node.input[index], "fault.heads"], [name], axis=1),
            )
            node.input[index] = name


def two_layers_swapped(graph: onnx.GraphProto) -> None:
    weights = {i.name: i for i in graph.initializer if i.data_location == TensorProto.EXTERNAL}
    for name in list(weights):
        if name.startswith("model.layers.0."):
            one, other = weights[name], weights[name.replace(".0.", ".1.", 1)]
            where = list(one.external_data)
            one.ClearField("external_data")
            one.external_data.extend(other.external_data)
            other.ClearField("external_data")
            other.external_data.extend(where)


def head_dim_by_division(graph: onnx.GraphProto, wrong: int, right: int) -> None:
    """What is computed when head_dim is taken for dim / heads: scale and frequencies."""
    attribute = frequencies(graph)
    attribute.floats[:] = np.array(attribute.floats) ** (right / wrong)
    scale_attention(graph, (right / wrong) ** 0.5)


def softmax_scale_in_bf16(graph: onnx.GraphProto) -> None:
    """1/sqrt(D) rounded to BF16: 1.1e-4 off for D = 128, exact for D = 64."""
    scale = next(
        a for n in graph.node if n.op_type == "Attention" for a in n.attribute if a.name == "scale"
    ).f
    scale_attention(graph, float(np.float32(ml_dtypes.bfloat16(scale))) / scale)


def scale_attention(graph: onnx.GraphProto, factor: float) -> None:
    """Multiply the softmax scale of every attention."""
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Attention" and attribute.name == "scale":
                attribute.f *= factor


def q_and_k_rows_permuted(weights: dict[str, np.ndarray], head_dim: int) -> None:
    for name, array in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = np.array(array).reshape(-1, 2, head_dim // 2, array.shape[1])
            array[...] = halves.swapaxes(1, 2).reshape(array.shape)


def one_tensor_zeroed(weights: dict[str, np.ndarray]) -> None:
    weights["model.layers.1.self_attn.v_proj.weight"][...] = 0


def scaled(name: str, factor: float, rows: slice = slice(None)) -> GraphEdit:
    """Multiplies an initializer, which must be there, or some rows of one that has rows."""

    def edit(graph: onnx.GraphProto) -> None:
        (one,) = (initializer for initializer in graph.initializer if initializer.name == name)
        value = numpy_helper.to_array(one)
        changed = np.array(value, np.float32)
        changed[rows if changed.ndim else ...] *= factor
        one.CopyFrom(numpy_helper.from_array(changed.astype(value.dtype), name))

    return edit
