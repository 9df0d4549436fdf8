"""Lowers a bundle's graph in memory for ONNX Runtime's CUDA provider.

The bundle on disk is not touched. docs/cuda.md has the reason of every step, in this order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nemo_trt import bfloat16, contract, e4m3
from nemo_trt.engines.ort_graph import Weight, promote_array, promote_types, split_off_weight_scales
from nemo_trt.engines.stored_graph import external_weights, map_weight, read_graph, replace
from nemo_trt.errors import BundleError
from nemo_trt.precision import DType

from .kernels import CONTRIB

POSITIONS = "positions"
"""Input int64 (B, S): the position of every token, write_indices + 0 .. S - 1."""
LENGTHS = "lengths"
"""Input int64 (B,): keys of a row that are valid after the update, write_indices + S."""
LOGIT_ROWS = "logit_rows"
"""Input int64 (B, N), in place of logit_indices: row * S + index, of all tokens in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredGraph:
    """A graph for ONNX Runtime, and its weights.

    Attributes:
        model: its weights marked external. Inputs: input_ids, write_indices, the caches, and
            POSITIONS, LENGTHS and LOGIT_ROWS.
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
    if missing := [name for name in _STEPS if name not in present]:
        raise _foreign(f"the operator {missing[0]}")
    return lower_model(model, bundle, base)


def lower_model(model: onnx.ModelProto, bundle: Path, base: DType) -> LoweredGraph:
    """`lower` of a graph, or of a piece of one, whose weights lie in `bundle`; it is altered."""
    graph = model.graph
    stored = external_weights(graph)
    scales = split_off_weight_scales(graph, stored, base.onnx_code)
    for operator, step in _STEPS.items():
        if any(node.op_type == operator for node in graph.node):
            step(graph)
            _drop_unread(graph)
    if base is DType.BF16:
        _quantise_in_fp32(graph)
    else:
        promote_types(model)
    model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    del graph.value_info[:]
    weights = [
        Weight(one.name, _array(one, stored, scales, bundle, base), one.data_type)
        for one in graph.initializer
        if one.data_location == TensorProto.EXTERNAL
    ]
    return LoweredGraph(model=model, weights=weights)


def _array(
    initializer: onnx.TensorProto,
    stored: dict[str, onnx.TensorProto],
    scales: dict[str, NDArray[np.float32]],
    bundle: Path,
    base: DType,
) -> NDArray[np.generic]:
    array = map_weight(stored[initializer.name], bundle)
    if initializer.name in scales:
        values = e4m3.to_float32(array.view(np.uint8), scales[initializer.name])
        return bfloat16.from_float32(values) if base is DType.BF16 else values
    return array if base is DType.BF16 else promote_array(array)


def _take_positions(graph: onnx.GraphProto) -> None:
    """Positions become an input: computed from S they would come from the host in each step."""
    producers = _producers(graph)
    node: onnx.NodeProto | None = next(one for one in graph.node if one.op_type == "Cos")
    while node is not None and node.op_type in ("Cast", "Cos", "Mul", "Unsqueeze"):
        if node.op_type == "Cast" and producers[node.input[0]].op_type == "Add":
            node.input[0] = POSITIONS
            graph.input.append(_integers(POSITIONS, "B", "S"))
            return
        node = producers.get(node.input[0])
    raise _foreign("rotary angles of write_indices plus a range")


def _take_lengths(graph: onnx.GraphProto) -> None:
    """Lengths become an input, for the same reason."""
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    if any(len(node.input) < 7 for node in attentions):
        raise _foreign("attentions with nonpad_kv_seqlen")
    for node in attentions:
        node.input[6] = LENGTHS
    graph.input.append(_integers(LENGTHS, "B"))


def _gather_logit_rows(graph: onnx.GraphProto) -> None:
    """Gather rows of (B * S, C): GatherND's kernel copies from the host in each step."""
    nodes = [node for node in graph.node if node.op_type == "GatherND"]
    if len(nodes) != 1:
        raise _foreign("one GatherND before the head")
    (gather,) = nodes
    width = _width(graph, gather.input[0])
    flat, name = f"{gather.input[0]}.flat", f"{gather.output[0]}.shape"
    shape = np.array([-1, width])
    graph.initializer.append(numpy_helper.from_array(shape, name))
    reshape = helper.make_node("Reshape", [gather.input[0], name], [flat], flat)
    taken = helper.make_node("Gather", [flat, LOGIT_ROWS], [gather.output[0]], gather.name, axis=0)
    _substitute(graph, {gather.output[0]: [reshape, taken]})
    inputs = [value for value in graph.input if value.name != contract.LOGIT_INDICES]
    del graph.input[:]
    graph.input.extend([*inputs, _integers(LOGIT_ROWS, "B", "N")])


def _width(graph: onnx.GraphProto, value: str) -> int:
    """The last dimension of what the last norm gives, or of the input in its place."""
    for given in graph.input:
        if given.name == value:
            return int(given.type.tensor_type.shape.dim[-1].dim_value)
    producers = _producers(graph)
    weight = producers[value].input[1]  # (C,)
    while weight in producers:  # an fp32 bundle casts it
        weight = producers[weight].input[0]
    (stored,) = (one for one in graph.initializer if one.name == weight)
    return int(stored.dims[0])


def _multiply_transposed(graph: onnx.GraphProto) -> None:
    """Let the product read a weight [N, K] as it is stored, instead of a transposed copy."""
    producers = _producers(graph)
    stored = external_weights(graph)
    for node in graph.node:
        turned = producers.get(node.input[1]) if node.op_type == "MatMul" else None
        if turned is not None and turned.op_type == "Transpose" and turned.input[0] in stored:
            node.op_type, node.domain = "FusedMatMul", CONTRIB
            node.input[1] = turned.input[0]
            node.attribute.append(helper.make_attribute("transB", 1))


def _rotate_separately(graph: onnx.GraphProto) -> None:
    """Rotate queries and keys each for themselves: two kernels for a Concat, one and two Slices.

    ONNX Runtime would also make one Split of the Slices, which copies its offsets from the host.
    """
    producers, constants = _producers(graph), _constants(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    inserted: dict[str, list[onnx.NodeProto]] = {}
    for rotary in graph.node:
        if rotary.op_type != "RotaryEmbedding":
            continue
        transpose = producers[rotary.input[0]]
        reshape = producers[transpose.input[0]]
        joined = producers.get(reshape.input[0])
        slices = readers[rotary.output[0]]
        if joined is None or [joined.op_type, *(s.op_type for s in slices)] != [
            "Concat", "Slice", "Slice",
        ]:  # fmt: skip
            raise _foreign("a Concat of queries and keys before each RotaryEmbedding")
        inserted[slices[1].output[0]] = []
        slices.sort(key=lambda one: int(constants[one.input[1]][0]))
        for part, source in zip(slices, joined.input, strict=True):
            heads = int(constants[part.input[2]][0] - constants[part.input[1]][0])
            shape = np.array([0, 0, heads, constants[reshape.input[1]][3]])
            name = f"{part.output[0]}.heads"
            graph.initializer.append(numpy_helper.from_array(shape, f"{name}.shape"))
            turned, rotated = onnx.NodeProto(), onnx.NodeProto()
            turned.CopyFrom(transpose)
            rotated.CopyFrom(rotary)
            turned.input[0], turned.output[0], turned.name = name, f"{name}.turned", f"{name}.T"
            rotated.input[0], rotated.output[0] = turned.output[0], part.output[0]
            rotated.name = f"{name}.rotated"
            inserted[part.output[0]] = [
                helper.make_node("Reshape", [source, f"{name}.shape"], [name], name),
                turned,
                rotated,
            ]
    _substitute(graph, inserted)


def _fuse_skips(graph: onnx.GraphProto) -> None:
    """A sum and the norm that follows it are one kernel."""
    norms = {node.input[0]: node for node in graph.node if node.op_type == "RMSNormalization"}
    substitutes: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        norm = norms.get(node.output[0]) if node.op_type == "Add" else None
        if norm is None:
            continue
        epsilon = next(one.f for one in norm.attribute if one.name == "epsilon")
        fused = helper.make_node(
            "SkipSimplifiedLayerNormalization",
            [*node.input, norm.input[1]],
            [norm.output[0], "", "", node.output[0]],
            norm.name,
            domain=CONTRIB,
            epsilon=epsilon,
        )
        substitutes[node.output[0]] = []
        substitutes[norm.output[0]] = [fused]
    _substitute(graph, substitutes)


def _quantise_in_fp32(graph: onnx.GraphProto) -> None:
    """Q and DQ have no BF16 kernels: cast before and after, which alters no number."""
    constants = {one.name: one for one in graph.initializer}
    substitutes: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constants[node.input[1]]
        if scale.data_type == DType.BF16.onnx_code:
            values = numpy_helper.to_array(scale).astype(np.float32)
            scale.CopyFrom(numpy_helper.from_array(values, scale.name))
        mended = onnx.NodeProto()
        mended.CopyFrom(node)
        if node.op_type == "QuantizeLinear":
            mended.input[0] = f"{node.input[0]}.fp32"
            cast = helper.make_node(
                "Cast", [node.input[0]], [mended.input[0]], to=TensorProto.FLOAT
            )
            order = [cast, mended]
        else:
            mended.output[0] = f"{node.output[0]}.fp32"
            cast = helper.make_node(
                "Cast", [mended.output[0]], [node.output[0]], to=TensorProto.BFLOAT16
            )
            order = [mended, cast]
        substitutes[node.output[0]] = order
    _substitute(graph, substitutes)


_STEPS: dict[str, Callable[[onnx.GraphProto], None]] = {
    "Cos": _take_positions,
    "Attention": _take_lengths,
    "GatherND": _gather_logit_rows,
    "MatMul": _multiply_transposed,
    "RotaryEmbedding": _rotate_separately,
    "Add": _fuse_skips,
}
"""Operator -> the step that needs it, in the order of the steps."""


def _integers(name: str, *shape: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def _producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in graph.node for output in node.output if output}


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    """Every small constant, of initializers and of Constant nodes."""
    found = {
        one.name: numpy_helper.to_array(one)
        for one in graph.initializer
        if one.data_location != TensorProto.EXTERNAL
    }
    read: dict[str, Callable[[onnx.AttributeProto], object]] = {
        "value": lambda one: numpy_helper.to_array(one.t),
        "value_ints": lambda one: one.ints,
        "value_floats": lambda one: one.floats,
        "value_int": lambda one: one.i,
        "value_float": lambda one: one.f,
    }
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name in read:
            attribute = node.attribute[0]
            found[node.output[0]] = np.asarray(read[attribute.name](attribute))
    return found


def _substitute(graph: onnx.GraphProto, substitutes: dict[str, list[onnx.NodeProto]]) -> None:
    """Put nodes in the place of those whose first output is named."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += substitutes.get(node.output[0], [node])
    replace(graph.node, nodes)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers that no output needs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    replace(graph.node, kept[::-1])
    replace(graph.initializer, [one for one in graph.initializer if one.name in needed])


def _foreign(what: str) -> BundleError:
    return BundleError(
        f"The bundle's graph must have {what}, got another form. Export it again with this version."
    )
