"""Weights are mapped when they are read, and leave a graph as external data."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from nemo_trt.errors import BundleError
from nemo_trt.passes.weights import attach, detach, map_weight, weight_of

from .computing import graph_of, random

pytestmark = pytest.mark.unit


def stored(length: int = 24) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        "w.bin", 8, length, ir.DataType.BFLOAT16, shape=ir.Shape([3, 4]), name="w"
    )


def test_a_weight_is_mapped_from_its_place(tmp_path: Path) -> None:
    numbers = np.arange(16, dtype=np.uint16)
    (tmp_path / "w.bin").write_bytes(numbers.tobytes())
    found = map_weight(stored(), tmp_path)
    assert isinstance(found, np.memmap) and found.dtype == np.uint16
    assert found.tolist() == numbers[4:].reshape(3, 4).tolist()


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_missing_or_short_file_is_named_when_it_is_read(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "w.bin").write_bytes(content)
    model = graph_of("g (float[2] x) => (float[2] y) { y = Identity(x) }")
    model.graph.register_initializer(ir.Value(name="w", const_value=stored()))
    attach(model, tmp_path)
    weight = weight_of(model.graph.initializers["w"])
    assert weight is not None
    with pytest.raises(BundleError, match="Weight w cannot be read"):
        weight.read()


def test_constants_are_no_weights(tmp_path: Path) -> None:
    model = graph_of("g (float[2] x) => (float[2] y) <float[1] c = {2.0}> { y = Mul(x, c) }")
    attach(model, tmp_path)
    assert detach(model) == {}


def test_what_leaves_the_graph_is_external_there() -> None:
    model = graph_of("g (float[2, 3] x) => (float[2, 4] y) { y = MatMul(x, w) }", w=random(3, 4))
    assert list(detach(model)) == ["w"]
    (left,) = ir.to_proto(model).graph.initializer
    assert left.name == "w" and left.data_location == left.EXTERNAL and not left.raw_data
    assert list(left.dims) == [3, 4]
