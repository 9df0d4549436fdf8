"""Puts the plugin into a graph, where cache updates and attentions stood.

Before: every layer has two TensorScatter and an Attention that reads what they update.
After: it has one node of the plugin; caches are pools of pages, `(pages, K, page, D)`, and the
graph has two inputs more: `page_table` and `lengths`.
"""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import PostconditionError, PreconditionError

from nemo_trt import contract
from nemo_trt.cache_scales import CacheScales
from nemo_trt.passes.graph_pass import GraphPass, nodes_of, source, substitute, take_over
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
    attention: ir.Node
    updates: tuple[ir.Node, ir.Node]  # of keys and of values
    scores: float


class PlacePlugin(GraphPass):
    """Replaces every layer's cache updates and attention by the plugin's node."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self._placement = placement

    def requires(self, model: ir.Model) -> None:
        """The contract's inputs and outputs; every attention causal, over updated caches, its
        scale stated."""
        _layers(model.graph)

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        layers = _layers(graph)
        rows, int32 = "B", ir.TensorType(ir.DataType.INT32)
        table = ir.Value(name=PAGE_TABLE, shape=ir.Shape([rows, "row_pages"]), type=int32)
        lengths = ir.Value(name=LENGTHS, shape=ir.Shape([rows]), type=int32)
        written = next(one for one in graph.inputs if one.name == contract.WRITE_INDICES)
        starts = ir.node(
            "Cast",
            [written],
            {"to": int(ir.DataType.INT32)},
            outputs=[ir.Value(name=_STARTS, type=int32)],
            name=_STARTS,
        )
        graph.insert_before(next(iter(graph)), starts)
        for layer in layers:
            paging = [table, starts.outputs[0], lengths]
            node = _plugin_node(layer, paging, self._placement)
            substitute(graph, layer.attention, [node])
            for update, pool in zip(layer.updates, node.outputs[1:], strict=True):
                take_over(update.outputs[0], pool)
            graph.remove([layer.attention, *layer.updates], safe=True)
        graph.inputs.extend([table, lengths])
        _reshape_caches(graph, self._placement)

    def ensures(self, model: ir.Model) -> None:
        """No TensorScatter and no Attention."""
        for node in nodes_of(model.graph, "TensorScatter", "Attention"):
            raise PostconditionError(f"nothing that the plugin replaces, it left {node.name}")


def _layers(graph: ir.Graph) -> list[_Layer]:
    """Every layer's nodes, checked.

    Raises:
        PreconditionError: they are not what the plugin replaces.
    """
    updates = {node.outputs[0]: node for node in nodes_of(graph, "TensorScatter")}
    layers = []
    for node in nodes_of(graph, "Attention"):
        stated = {name: one.value for name, one in node.attributes.items() if one.value}
        keys, values = (updates.pop(source(node, index), None) for index in (1, 2))
        if (
            keys is None
            or values is None
            or any(node.inputs[3:6])
            or set(stated) != {"is_causal", "scale"}
            or any(source(one, 2).name != contract.WRITE_INDICES for one in (keys, values))
        ):
            raise PreconditionError(
                f"causal attentions over two updated caches with their scale, and no {node.name} "
                f"with {sorted(stated)}"
            )
        layers.append(_Layer(node, (keys, values), node.attributes["scale"].as_float()))
    if updates or not layers:
        unread = sorted(one.name or "" for one in updates)
        raise PreconditionError(f"one attention for every cache, and no {unread or 'cache'}")
    return layers


def _plugin_node(layer: _Layer, paging: list[ir.Value], placement: Placement) -> ir.Node:
    attention, (keys, values) = layer.attention, layer.updates
    caches = [source(keys, 0), source(values, 0)]
    scales = placement.scales(contract.layer_of(caches[0].name or ""))
    numbers = [layer.scores, *(scales or (1.0, 1.0))]
    attributes: dict[str, Any] = dict(zip(FIELDS, numbers, strict=True))
    attributes[FP8] = int(scales is not None)
    attributes |= {"plugin_version": VERSION, "plugin_namespace": NAMESPACE}
    new = [source(keys, 1), source(values, 1)]
    return ir.node(
        NAME,
        [source(attention, 0), *new, *caches, *paging],
        attributes,
        domain=DOMAIN,
        num_outputs=3,
        name=attention.name,
    )


def _reshape_caches(graph: ir.Graph, placement: Placement) -> None:
    """Give caches the shape and dtype of pools."""
    for value in (*graph.inputs, *graph.outputs):
        name = value.name or ""
        if not name.startswith((contract.PAST, "present.")):
            continue
        assert value.shape is not None
        _, kv_heads, _, head_dim = value.shape
        fp8 = placement.scales(contract.layer_of(name)) is not None
        dtype = DType.FP8 if fp8 else placement.base
        value.type = ir.TensorType(ir.DataType(dtype.onnx_code))
        value.shape = ir.Shape(["pages", kv_heads, placement.page, head_dim])
