"""A remembered trace is the trace, and no caller alters another's."""

from dataclasses import replace
from typing import Any

import pytest

from tests.traces import Remembered

pytestmark = pytest.mark.model


def text(model: Any) -> str:
    import onnx_ir as ir

    graph = model.graph
    values = [f"{value.name} {value.dtype} {value.shape}" for value in graph.initializers.values()]
    constants = [
        v.const_value.numpy().tobytes() for v in graph.initializers.values() if v.const_value
    ]
    nodes = [ir.serde.serialize_node(node).SerializeToString(deterministic=True) for node in graph]
    ends = [f"{v.name} {v.dtype} {v.shape}" for v in (*graph.inputs, *graph.outputs)]
    return repr((values, constants, nodes, ends, dict(model.opset_imports)))


def test_a_copy_is_the_trace_and_stays_apart() -> None:
    from nemo_trt.export.samples import SHAPES
    from nemo_trt.export.trace import trace_every_layer
    from nemo_trt.precision import DType

    calls = []

    def trace(*arguments: Any) -> Any:
        calls.append(arguments)
        return trace_every_layer(*arguments)

    remembered = Remembered(trace)
    config = replace(SHAPES["nemo-tiny"], num_layers=1)
    first = remembered(config, DType.BF16)
    as_traced = text(first)
    assert as_traced == text(trace_every_layer(config, DType.BF16))
    next(iter(first.graph)).name = "altered"
    first.graph.initializers.clear()
    assert text(remembered(config, DType.BF16)) == as_traced
    assert len(calls) == 1
    remembered(config, DType.FP32)
    assert len(calls) == 2
