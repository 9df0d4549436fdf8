"""Puts the plugin into a graph, where cache updates and attentions stood.

Before: every layer has two TensorScatter and an Attention that reads what they update.
After: it has one node of the plugin; caches are pools of pages, `(pages, K, page, D)`, and the
graph has two inputs more: `page_table` and `lengths`.
"""

from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto, helper

from nemo_trt import contract
from nemo_trt.engines.stored_graph import replace
from nemo_trt.errors import BundleError
from nemo_trt.precision import DType

from .plugin import FIELDS, NAME, NAMESPACE, VERSION

DOMAIN = "nemo_trt"
PAGE_TABLE = "page_table"
"""Input int32 (B, pages of a row): entry i of a row names the page of its tokens from i * page."""
LENGTHS = "lengths"
"""Input int32 (B,) of every engine: tokens that a row holds after the step, write_indices + S; with
pages 0 for a row that is idle.

It is an input and not computed from S: a shape would be copied from the host in each step, which no
CUDA graph can hold.
"""
_STARTS = "starts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How the caches are stored.

    Attributes:
        page: tokens of a page.
        cache: dtype of the pages.
        scales: (layer, "key" or "value") -> what a stored number is multiplied by; 1 if none.
    """

    page: int
    cache: DType
    scales: dict[tuple[int, str], float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention: onnx.NodeProto
    updates: tuple[onnx.NodeProto, onnx.NodeProto]  # of keys and of values
    scores: float


def place(graph: onnx.GraphProto, placement: Placement) -> None:
    """Replace every layer's cache updates and attention by the plugin's node.

    Requires: the contract's inputs and outputs; every attention causal, over updated caches, its
        scale stated.
    Ensures: no TensorScatter and no Attention; nothing that only they needed.

    Raises:
        BundleError: the graph is another.
    """
    layers = _layers(graph)
    replaced = {layer.attention.output[0]: layer for layer in layers}
    dropped = {update.output[0] for layer in layers for update in layer.updates}
    nodes = [helper.make_node("Cast", [contract.WRITE_INDICES], [_STARTS], to=TensorProto.INT32)]
    for node in graph.node:
        if node.output[0] in replaced:
            nodes.append(_plugin_node(replaced[node.output[0]], placement))
        elif node.output[0] not in dropped:
            nodes.append(node)
    outputs = {output.name for output in graph.output}
    replace(graph.node, _needed(nodes, outputs))
    _reshape_caches(graph, placement)
    rows = "B"
    graph.input.extend(
        [
            helper.make_tensor_value_info(PAGE_TABLE, TensorProto.INT32, [rows, "row_pages"]),
            helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, [rows]),
        ]
    )


def _layers(graph: onnx.GraphProto) -> list[_Layer]:
    """Every layer's nodes, checked.

    Raises:
        BundleError: they are not what the plugin replaces.
    """
    updates = {node.output[0]: node for node in graph.node if node.op_type == "TensorScatter"}
    layers = []
    for node in graph.node:
        if node.op_type != "Attention":
            continue
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        stated = {name: value for name, value in attributes.items() if value}
        keys, values = updates.pop(node.input[1], None), updates.pop(node.input[2], None)
        if (
            keys is None
            or values is None
            or any(node.input[3:6])
            or set(stated) != {"is_causal", "scale"}
            or keys.input[2] != contract.WRITE_INDICES
            or values.input[2] != contract.WRITE_INDICES
        ):
            raise BundleError(
                f"{node.name} must be a causal attention over two updated caches with its scale, "
                f"got {sorted(stated)}. Export the bundle again."
            )
        layers.append(_Layer(node, (keys, values), stated["scale"]))
    if updates or not layers:
        raise BundleError(
            f"Every cache must be read by one attention, got {sorted(updates) or 'no attention'}."
        )
    return layers


def _plugin_node(layer: _Layer, placement: Placement) -> onnx.NodeProto:
    attention, (keys, values) = layer.attention, layer.updates
    scales = [_scale_of(update.input[0], placement) for update in layer.updates]
    attributes: dict[str, Any] = dict(zip(FIELDS, [layer.scores, *scales], strict=True))
    return helper.make_node(
        NAME,
        [attention.input[0], keys.input[1], values.input[1], keys.input[0], values.input[0],
         PAGE_TABLE, _STARTS, LENGTHS],
        [attention.output[0], keys.output[0], values.output[0]],
        attention.name,
        domain=DOMAIN,
        plugin_version=VERSION,
        plugin_namespace=NAMESPACE,
        **attributes,
    )  # fmt: skip


def _scale_of(past: str, placement: Placement) -> float:
    layer, _, kind = past.removeprefix(contract.PAST).partition(".")
    if placement.cache is not DType.FP8:
        return 1.0
    try:
        return placement.scales[int(layer), kind]
    except KeyError:
        raise BundleError(f"{past} must have a scale to be stored in FP8.") from None


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Nodes that an output depends on, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _reshape_caches(graph: onnx.GraphProto, placement: Placement) -> None:
    """Give caches the shape and dtype of pools."""
    for value in (*graph.input, *graph.output):
        if not value.name.startswith((contract.PAST, "present.")):
            continue
        tensor = value.type.tensor_type
        _, kv_heads, _, head_dim = (dim.dim_value for dim in tensor.shape.dim)
        pool = helper.make_tensor_value_info(
            value.name, placement.cache.onnx_code, ["pages", kv_heads, placement.page, head_dim]
        )
        value.CopyFrom(pool)
