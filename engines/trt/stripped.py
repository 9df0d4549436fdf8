"""Plans without weights: a network takes them as inputs, from the bundle when the engine is opened.

TensorRT's own flags for such plans, and for plans whose weights can be exchanged, need a GPU while
it compiles (docs/tensorrt.md). This does not, and costs no kernel.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx
import onnx_ir as ir

from nemo_trt.bundle import Bundle
from nemo_trt.engines.stored_graph import read_graph
from nemo_trt.errors import BuildError
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.merge_products import MergeProducts
from nemo_trt.passes.weights import LazyWeight, attach, detach

from .engine_record import EngineRecord
from .kernels import Kernel
from .lowering import LoweredGraph

Weights = Mapping[str, LazyWeight]


def without_weights(graph: LoweredGraph) -> LoweredGraph:
    """The graph with its weights as inputs, of their names."""
    model = onnx.ModelProto.FromString(graph.model)
    rest = []
    for one in model.graph.initializer:
        if one.name in graph.weights:
            value = onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims)
            model.graph.input.append(value)
        else:
            rest.append(one)
    del model.graph.initializer[:]
    model.graph.initializer.extend(rest)
    return replace(graph, model=model.SerializeToString(), weights={})


def taken_weights(bundle: Bundle) -> dict[str, LazyWeight]:
    """The weights that a stripped plan of a bundle takes. None is read yet.

    Raises:
        BundleError: the graph cannot be read.
    """
    model = ir.from_proto(read_graph(bundle.path, GRAPH_FILE))
    attach(model, bundle.path)
    apply(model, [MergeProducts()])
    return detach(model)


def digest_of(weights: Weights) -> str:
    """Of names, types and shapes: with equal ones a plan takes either weights."""
    parts = [[name, int(one.dtype), [*one.shape.numpy()]] for name, one in weights.items()]
    return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()


def weights_to_take(bundle: Bundle, record: EngineRecord) -> dict[str, LazyWeight]:
    """The weights that an engine takes when it is opened: none if they are in its plans.

    Raises:
        BuildError: the engine takes others than this version of nemo-trt gives.
    """
    if record.stripped is None:
        return {}
    weights = taken_weights(bundle)
    if digest_of(weights) != record.stripped:
        raise BuildError(
            f"Engine {record.name} must take the weights that this version of nemo-trt reads from "
            f"{bundle}, but it was built for others. "
            f"Build it again: {record.rebuild_command(bundle)}."
        )
    return weights


def require_computed_as_stored(graph: LoweredGraph, bundle: Bundle) -> None:
    """Check that no matrix of weights is converted: that would happen in every step.

    Raises:
        BuildError: one is.
    """
    model = onnx.ModelProto.FromString(graph.model)
    for one in model.graph.node:
        if one.op_type == "Cast" and one.input[0] in graph.weights:
            raise BuildError(
                f"With --strip weights must be stored as they are computed with, but "
                f"{one.input[0]} of {bundle} would be converted in every step. Build without "
                "--strip, or a bundle of bf16 or fp8; a BF16 one without --kv-cache fp16."
            )


def require_no_copies(kernels: Iterable[Kernel], weights: Weights) -> None:
    """Check that every kernel reads a matrix of weights where it lies.

    Raises:
        BuildError: one writes as many numbers as it reads: it would do so in every step.
    """
    sizes = {name: math.prod(one.shape.numpy()) for name, one in weights.items()}
    matrices = {name for name, one in weights.items() if len(one.shape) > 1}
    for kernel in kernels:
        for read in kernel.inputs:
            if read.name not in matrices:
                continue
            if any(math.prod(made.shape) == sizes[read.name] for made in kernel.outputs):
                raise BuildError(
                    f"A stripped plan must read {read.name} where it lies, but the kernel "
                    f"{kernel.name} copies it in every step. Build without --strip."
                )
