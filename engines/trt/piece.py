"""A piece of a bundle's graph as a TensorRT network, lowered and fixed up as a build does it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from .compile import builder_config
from .engine_record import BuildOptions
from .lowering import LoweredGraph, lower_model
from .network import mend_piece, parse
from .toolkit import Log, Toolkit


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceNetwork:
    """What TensorRT compiles. All of it must live until that has ended.

    Attributes:
        builder, network, config: TensorRT's own; the network is strongly typed, its shapes fixed.
        graph: what the network was parsed from, and its weights.
        log: what TensorRT said.
    """

    builder: Any
    network: Any
    config: Any
    graph: LoweredGraph
    log: Log


def piece_network(
    toolkit: Toolkit, piece: onnx.ModelProto, bundle: Path, options: BuildOptions
) -> PieceNetwork:
    """Lower, parse and fix up a piece of fixed shapes and one row; it is altered.

    Inputs and outputs keep the types of the piece, but for caches, which have the engine's. A
    network with attentions has `LENGTHS` too.

    Args:
        toolkit: that of the engine which is looked into.
        piece: caches it updates must be outputs of it.
        bundle: the folder in which the weights lie.
        options: of the engine.

    Raises:
        BundleError: a weight cannot be read.
        BuildError: TensorRT refuses the piece.
    """
    graph = lower_model(piece, bundle, in_fp16=options.kv_cache == "fp16")
    log = Log(toolkit)
    builder = toolkit.api.Builder(log.logger)
    network = parse(toolkit, log, builder, graph)
    mend_piece(toolkit, network, allow_unfused=options.allow_unfused)
    config = builder_config(toolkit, builder, options)
    return PieceNetwork(builder=builder, network=network, config=config, graph=graph, log=log)
