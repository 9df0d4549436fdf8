"""What `export/exactness.py` checks of a bundle's graph holds of every lowering of it too."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nemo_trt.config import ModelConfig
from nemo_trt.engines.cuda import lowering as cuda
from nemo_trt.engines.ort_lowering import lower as lower_for_cpu
from nemo_trt.engines.trt import lowering as trt
from nemo_trt.manifest import GRAPH_FILE, read_manifest
from nemo_trt.precision import DType

pytestmark = pytest.mark.model
_NARROW = {TensorProto.BFLOAT16, TensorProto.FLOAT16}
_NORMS = {"RMSNormalization", "SkipSimplifiedLayerNormalization"}


@pytest.fixture(scope="module")
def bundle(cached: Any) -> Path:
    """BF16, and heads of 112: a size whose softmax scale is far from any BF16 number."""

    def make(folder: Path) -> None:
        from nemo_trt.export.bundle import export_bundle
        from nemo_trt.export.samples import SHAPES, write_seeded

        write_seeded(
            folder / "checkpoint", replace(SHAPES["nemo-tiny"], vocab_size=64, head_dim=112)
        )
        export_bundle(folder / "checkpoint", folder / "bundle", precision=DType.BF16)

    return Path(cached("heads-of-112", make) / "bundle")


LOWERINGS: dict[str, Callable[[Path], onnx.ModelProto]] = {
    "cpu": lambda bundle: onnx.load_from_string(lower_for_cpu(bundle, GRAPH_FILE)[0]),
    "cuda": lambda bundle: cuda.lower(bundle, GRAPH_FILE, DType.BF16).model,
    "tensorrt": lambda bundle: onnx.load_from_string(trt.lower(bundle, GRAPH_FILE, 256).model),
}


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def faults(graph: onnx.GraphProto, config: ModelConfig) -> Iterator[str]:
    """What is rounded, in words."""
    constants = {i.name: i for i in graph.initializer if i.data_location != TensorProto.EXTERNAL}
    producers = {output: node for node in graph.node for output in node.output}
    types = {one.name: one.type.tensor_type.elem_type for one in graph.input}
    types |= {one.name: one.data_type for one in graph.initializer}
    before: dict[str, set[str]] = {}  # value -> all that it is computed from
    for node in graph.node:
        given = [name for name in node.input if name]
        to = attribute(node, "to") if node.op_type == "Cast" else None
        kind = to or (types.get(given[0], 0) if given else 0)
        for output in node.output:
            types[output] = TensorProto.INT64 if node.op_type == "Shape" else kind
            before[output] = {output}.union(*(before.get(name, {name}) for name in given))
        if node.op_type in ("Cos", "Sin"):
            yield from (
                f"{name} before {node.op_type}"
                for name in before[node.output[0]] - {node.output[0]}
                if types.get(name) in _NARROW
            )
        elif node.op_type in _NORMS:
            if np.float32(attribute(node, "epsilon")) != np.float32(config.rms_norm_eps):
                yield f"epsilon of {node.name}"
            if attribute(node, "stash_type") not in (None, TensorProto.FLOAT):
                yield f"stash type of {node.name}"
        elif node.op_type == "Attention" and _scale(node, producers, constants) != np.float32(
            config.softmax_scale
        ):
            yield f"scale of {node.name}"
        elif node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
            constants[node.output[0]] = value
    yield from (f"constant {n}" for n, one in constants.items() if one.data_type in _NARROW)


def _scale(
    node: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
) -> np.float32:
    """The attribute, times what the query was multiplied by in fp32 just before."""
    scale = np.float32(attribute(node, "scale"))
    cast = producers.get(node.input[0])
    product = producers.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
    if product is None or product.op_type != "Mul":
        return scale
    wide = producers[product.input[0]]
    assert wide.op_type == "Cast" and attribute(wide, "to") == TensorProto.FLOAT
    factor = constants[product.input[1]]
    assert factor.data_type == TensorProto.FLOAT
    return scale * numpy_helper.to_array(factor).astype(np.float32)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_nothing_is_rounded_that_the_reference_keeps(lowering: str, bundle: Path) -> None:
    config = read_manifest(bundle).config
    assert float(np.float32(ml_dtypes.bfloat16(config.softmax_scale))) != config.softmax_scale
    graph = LOWERINGS[lowering](bundle).graph
    assert list(faults(graph, config)) == []
    kinds = [node.op_type for node in graph.node]
    assert {"Cos", "Sin", "Attention"} <= set(kinds)
    assert sum(kind in _NORMS for kind in kinds) == 2 * config.num_layers + 1


def narrow_angles(graph: onnx.GraphProto) -> None:
    node = next(one for one in graph.node if one.op_type == "Cos")
    cast = next(o for o in graph.node if o.op_type == "Cast" and o.output[0] != node.input[0])
    cast.attribute[0].i = TensorProto.BFLOAT16
    node.input[0] = cast.output[0]


def rounded_scale(graph: onnx.GraphProto) -> None:
    for one in graph.initializer:
        if "query_scale" in one.name:
            value = numpy_helper.to_array(one).astype(ml_dtypes.bfloat16).astype(np.float32)
            one.CopyFrom(numpy_helper.from_array(value, one.name))
    for node in graph.node:
        for found in node.attribute:
            if node.op_type == "Attention" and found.name == "scale":
                found.f = float(ml_dtypes.bfloat16(found.f))


def other_epsilon(graph: onnx.GraphProto) -> None:
    node = [one for one in graph.node if one.op_type in _NORMS][1]
    next(one for one in node.attribute if one.name == "epsilon").f = 1e-3


def narrow_constant(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(1, ml_dtypes.bfloat16), "half"))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("plant", [narrow_angles, rounded_scale, other_epsilon, narrow_constant])
def test_a_lowering_that_rounds_is_seen(
    plant: Callable[[onnx.GraphProto], None], lowering: str, bundle: Path
) -> None:
    graph = LOWERINGS[lowering](bundle).graph
    plant(graph)
    assert list(faults(graph, read_manifest(bundle).config))
