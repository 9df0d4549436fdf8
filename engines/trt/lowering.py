"""Lowers a bundle's graph for TensorRT: fixes T, merges products, scales the queries in fp32."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from nemo_trt.engines.candidates import NUM_CANDIDATES
from nemo_trt.engines.stored_graph import read_graph
from nemo_trt.passes.add_candidates import AddCandidates
from nemo_trt.passes.attend_in_fp16 import AttendInFp16
from nemo_trt.passes.fix_capacity import FixCapacity
from nemo_trt.passes.graph_pass import GraphPass, apply, nodes_of
from nemo_trt.passes.merge_products import MergeProducts
from nemo_trt.passes.scale_queries import ScaleQueries
from nemo_trt.passes.weights import attach, detach, weight_of

from .attention.place import DOMAIN, Placement, PlacePlugin


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredGraph:
    """A graph for the ONNX parser, and the bytes of its weights.

    Attributes:
        model: serialised, its weights marked external.
        weights: name -> its bytes, mapped from the bundle's files where they lie together.
        num_layers: attentions.
        num_fp8_products: matrix products with an FP8 weight, merged ones counted once.
    """

    model: bytes
    weights: dict[str, NDArray[np.uint8]]
    num_layers: int
    num_fp8_products: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights, which a plan must hold."""
        return sum(weight.nbytes for weight in self.weights.values())


def lower(
    bundle: Path,
    graph_file: str,
    capacity: int,
    paged: Placement | None = None,
    *,
    in_fp16: bool = False,
) -> LoweredGraph:
    """Read a bundle's graph and lower it for a cache of `capacity` tokens a row.

    Candidates are put behind its logits. With `paged` the cache is a pool of pages, and attention
    the plugin's. With `in_fp16` TensorRT's attention and its cache are FP16.

    Memory: the graph, and a copy of merged weights that do not lie together in their file.

    Raises:
        BundleError: the graph or a weight cannot be read.
    """
    first = [FixCapacity(capacity), AddCandidates(NUM_CANDIDATES)]
    return _lower(read_graph(bundle, graph_file), bundle, first, paged, in_fp16)


def lower_model(stored: onnx.ModelProto, bundle: Path, *, in_fp16: bool = False) -> LoweredGraph:
    """`lower` of a piece of a graph of fixed T, whose weights lie in `bundle`."""
    return _lower(stored, bundle, [], None, in_fp16)


def _lower(
    stored: onnx.ModelProto,
    bundle: Path,
    first: Sequence[GraphPass],
    paged: Placement | None,
    in_fp16: bool,
) -> LoweredGraph:
    model = ir.from_proto(stored)
    attach(model, bundle)
    graph = model.graph
    num_layers = sum(1 for _ in nodes_of(graph, "Attention"))
    attention: list[GraphPass] = [PlacePlugin(paged)] if paged else [ScaleQueries()]
    if in_fp16:
        attention.append(AttendInFp16())
    apply(model, [*first, MergeProducts(), *attention])
    if paged:
        graph.opset_imports[DOMAIN] = 1
    fp8 = sum(weight_of(node.inputs[0]) is not None for node in nodes_of(graph, "DequantizeLinear"))
    weights = {name: _bytes(weight.read()) for name, weight in detach(model).items()}
    lowered = ir.to_proto(model)
    del lowered.graph.value_info[:]  # they may still say T
    return LoweredGraph(
        model=lowered.SerializeToString(),
        weights=weights,
        num_layers=num_layers,
        num_fp8_products=fp8,
    )


def _bytes(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
