"""A graph with the plugin computes what the bundle's graph computes: on ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.cache_scales import CacheLayer, CacheScales
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.stored_graph import read_graph
from nemo_trt.engines.trt.attention.place import LENGTHS, PAGE_TABLE, Placement, PlacePlugin
from nemo_trt.engines.trt.attention.plugin import NAME
from nemo_trt.engines.trt.lowering import lower
from nemo_trt.errors import BundleError
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.passes.graph_pass import apply
from nemo_trt.precision import DType

from .reference import runnable

pytestmark = pytest.mark.model
PAGE, ROWS, PAGES, T = 4, 2, 10, 16


def test_steps_over_pages_give_the_logits_of_steps_over_rows(tiny: Any) -> None:
    placement = Placement(page=PAGE, base=DType.FP32)
    with OrtSession(Bundle.open(tiny.bundle), max_batch=ROWS, max_seq_len=T, threads=1) as session:
        config = session.config
        placed = runnable(lower(tiny.bundle, GRAPH_FILE, T, placement), config.head_dim, PAGE)
        session.bind(T)
        random = np.random.default_rng(0)
        table = random.permutation(PAGES)[: ROWS * T // PAGE].reshape(ROWS, -1).astype(np.int32)
        shape = (PAGES, config.num_kv_heads, PAGE, config.head_dim)
        pools = {
            past: np.full(shape, 9.0, np.float32)
            for past, _ in contract.cache_names(config.num_layers)
        }
        starts = np.zeros(ROWS, np.int64)
        for tokens in ((5, 5), (1, 1), (3, 3), (1, 1)):
            ids = random.integers(0, config.vocab_size, (ROWS, tokens[0]))
            wanted = np.full((ROWS, 1), tokens[0] - 1)
            expected = session.step(ids, starts, wanted)
            outputs = placed.run(
                None,
                {
                    contract.INPUT_IDS: ids,
                    contract.WRITE_INDICES: starts,
                    contract.LOGIT_INDICES: wanted,
                    PAGE_TABLE: table,
                    LENGTHS: (starts + tokens[0]).astype(np.int32),
                    **pools,
                },
            )
            np.testing.assert_allclose(outputs[0], expected, atol=2e-5)
            pools = dict(zip(pools, outputs[1:], strict=True))
            starts = starts + tokens[0] - np.array([0, 1])  # ragged: the second row steps back


def model_of(bundle: Any) -> onnx.ModelProto:
    return read_graph(bundle, GRAPH_FILE)


def placed(stored: onnx.ModelProto, placement: Placement) -> onnx.GraphProto:
    model = ir.from_proto(stored)
    apply(model, [PlacePlugin(placement)])
    return ir.to_proto(model).graph


def test_nothing_stays_that_only_the_attention_needed(tiny: Any) -> None:
    before = len(model_of(tiny.bundle).graph.node)
    graph = placed(model_of(tiny.bundle), Placement(page=PAGE, base=DType.FP32))
    kinds = [node.op_type for node in graph.node]
    assert kinds.count(NAME) == 2 and not {"TensorScatter", "Attention"} & set(kinds)
    made = {name for node in graph.node for name in node.output}
    used = {name for node in graph.node for name in node.input}
    assert not made - used - {one.name for one in graph.output}
    assert len(graph.node) < before


def damaged(graph: onnx.GraphProto, what: str) -> None:
    """A graph that the plugin must not replace."""
    attention = next(node for node in graph.node if node.op_type == "Attention")
    update = next(node for node in graph.node if node.op_type == "TensorScatter")
    attributes = {one.name: one for one in attention.attribute}
    if what == "not causal":
        attributes["is_causal"].i = 0
    elif what == "softcap":
        attention.attribute.remove(attributes["softcap"])
        attention.attribute.append(helper.make_attribute("softcap", 30.0))
    elif what == "a mask":
        attention.input[3] = "mask"
    elif what == "no scale":
        attention.attribute.remove(attributes["scale"])
    elif what == "keys that are no cache":
        attention.input[1] = update.input[1]
    elif what == "another place to write":
        update.input[2] = contract.LOGIT_INDICES
    elif what == "a cache that nothing reads":
        graph.node.remove(attention)


@pytest.mark.parametrize(
    "what",
    ["not causal", "softcap", "a mask", "no scale", "keys that are no cache",
     "another place to write", "a cache that nothing reads"],
)  # fmt: skip
def test_another_graph_is_refused(what: str, tiny: Any) -> None:
    model = model_of(tiny.bundle)
    damaged(model.graph, what)
    with pytest.raises(BundleError, match="must have"):
        placed(model, Placement(page=PAGE, base=DType.FP32))


def test_layers_have_the_scales_and_the_dtype_that_calibration_chose(tiny: Any) -> None:
    layers = tuple(
        CacheLayer(key_amax=448.0 * n, value_amax=896.0 * n, shift=float(n), kl=0.0) for n in (1, 4)
    )
    for kept, expected in (({}, [(1, 2, 1), (4, 8, 1)]), ({"1": "costly"}, [(1, 2, 1), (1, 1, 0)])):
        found = CacheScales(layers=layers, kl=0.0, max_kl=0.0, kept=kept)
        graph = placed(model_of(tiny.bundle), Placement(page=PAGE, base=DType.FP32, fp8=found))
        nodes = [
            {one.name: helper.get_attribute_value(one) for one in node.attribute}
            for node in graph.node
            if node.op_type == NAME
        ]
        assert [(one["keys"], one["values"], one["fp8"]) for one in nodes] == expected
        dtypes = {one.name: one.type.tensor_type.elem_type for one in (*graph.input, *graph.output)}
        for layer, (*_, fp8) in enumerate(expected):
            wanted = DType.FP8 if fp8 else DType.FP32
            for kind in ("key", "value"):
                assert dtypes[contract.past_name(layer, kind)] == wanted.onnx_code
                assert dtypes[contract.present_name(layer, kind)] == wanted.onnx_code
