"""Puts the plugin into a graph, where cache updates and attentions stood.

Before: every layer has two TensorScatter and an Attention that reads what they update.
After: it has one node of the plugin; caches are pools of pages, `(pages, K, page, D)`, and the
graph has two inputs more: `page_table` and `lengths`.
"""

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from nemo_trt import contract
from nemo_trt.cache_scales import CacheScales
from nemo_trt.engines.stored_graph import replace
from nemo_trt.errors import BundleError
from nemo_trt.precision import DType

from .plugin import FIELDS, FP8, NAME, NAMESPACE, VERSION

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
        base: dtype of pages that are not FP8.
        fp8: of an FP8 cache: its scales, and the layers that keep `base`.
    """

    page: int
    base: DType
    fp8: CacheScales | None = None

    def scales(self, layer: int) -> tuple[float, float] | None:
        """What a layer's stored keys and values are multiplied by, if its pages are FP8."""
        return self.fp8.scales(layer) if self.fp8 else None


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
    scales = placement.scales(contract.layer_of(keys.input[0]))
    numbers = [layer.scores, *(scales or (1.0, 1.0))]
    attributes: dict[str, Any] = dict(zip(FIELDS, numbers, strict=True))
    attributes[FP8] = int(scales is not None)
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
        fp8 = placement.scales(contract.layer_of(value.name)) is not None
        dtype = DType.FP8 if fp8 else placement.base
        shape = ["pages", kv_heads, placement.page, head_dim]
        pool = helper.make_tensor_value_info(value.name, dtype.onnx_code, shape)
        value.CopyFrom(pool)
