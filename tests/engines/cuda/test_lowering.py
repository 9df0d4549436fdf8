"""The lowered graph computes what the bundle computes, and the CUDA provider has every kernel."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nemo_trt.engines.cuda.kernels import KERNELS, without_kernel
from nemo_trt.engines.cuda.lowering import lower
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.errors import BundleError
from nemo_trt.manifest import GRAPH_FILE, read_manifest
from nemo_trt.passes.gather_logit_rows import LOGIT_ROWS
from nemo_trt.passes.take_lengths import LENGTHS
from nemo_trt.passes.take_positions import POSITIONS
from nemo_trt.precision import DType

pytestmark = pytest.mark.model

T, WRITTEN, NEW = 32, np.array([3, 7]), 5
IDS = np.random.default_rng(5).integers(0, 512, (2, 12))


def expected_logits(bundle: Path) -> np.ndarray:
    """What the CPU session gives for two rows of different lengths, and their caches' layer 1."""
    with OrtSession.open(bundle, max_batch=2, max_seq_len=T, threads=1) as session:
        session.bind(T)
        session.step(IDS[:, :7], np.zeros(2, np.int64), np.zeros((2, 1), np.int64))
        new = np.stack([IDS[row, at : at + NEW] for row, at in enumerate(WRITTEN)])
        every = np.array([[4, 1], [0, 3]])
        return session.step(new, WRITTEN, every).copy()


def lowered_logits(bundle: Path) -> np.ndarray:
    """The same by the graph that is lowered for CUDA, in fp32 on the CPU."""
    config = read_manifest(bundle).config
    graph = lower(bundle, GRAPH_FILE, DType.FP32)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    values = [
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(w.array, w.onnx_type) for w in graph.weights
    ]
    options.add_external_initializers([w.name for w in graph.weights], values)
    session = ort.InferenceSession(graph.model.SerializeToString(), options)
    shape = (2, config.num_kv_heads, T, config.head_dim)
    caches = {
        f"past_key_values.{layer}.{kind}": np.zeros(shape, np.float32)
        for layer in range(config.num_layers)
        for kind in ("key", "value")
    }
    logits = np.empty(0)
    names = [one.name for one in session.get_outputs()]
    for ids, written, indices in (
        (IDS[:, :7], np.zeros(2, np.int64), np.zeros((2, 1), np.int64)),
        (
            np.stack([IDS[row, at : at + NEW] for row, at in enumerate(WRITTEN)]),
            WRITTEN,
            np.array([[4, 1], [0, 3]]),
        ),
    ):
        length = ids.shape[1]
        feeds = {
            "input_ids": ids,
            "write_indices": written,
            POSITIONS: written[:, None] + np.arange(length),
            LENGTHS: written + length,
            LOGIT_ROWS: np.arange(2)[:, None] * length + indices,
            **caches,
        }
        logits, *updated = session.run(names, feeds)
        caches = dict(zip(caches, updated, strict=True))
    return logits


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_the_lowered_graph_computes_what_the_bundle_computes(
    bundles: dict[str, Path], precision: str
) -> None:
    found, expected = lowered_logits(bundles[precision]), expected_logits(bundles[precision])
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_cuda_has_a_kernel_for_every_node(bundles: dict[str, Path], precision: str) -> None:
    base = DType(precision).base
    model = lower(bundles[precision], GRAPH_FILE, base).model
    assert without_kernel(model) == []
    contrib = {node.domain for node in model.graph.node} - {""}
    assert contrib == {"com.microsoft"}


def test_fp8_bundles_lack_kernels_as_they_are(bundles: dict[str, Path]) -> None:
    model = onnx.load(bundles["fp8"] / GRAPH_FILE, load_external_data=False)
    assert without_kernel(model) == [
        "QuantizeLinear in bfloat16",
        "DequantizeLinear with a scale in bfloat16",
    ]


def test_an_operator_without_a_kernel_is_named(bundles: dict[str, Path]) -> None:
    model = lower(bundles["bf16"], GRAPH_FILE, DType.BF16).model
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Softplus"
    sine = next(node for node in model.graph.node if node.op_type == "Sin")
    sine.input[0] = "model.embed_tokens.weight"
    assert without_kernel(model) == ["Sin in bfloat16", "Softplus in bfloat16"]


def test_nothing_of_the_lowered_graph_comes_from_the_host_in_a_step(
    bundles: dict[str, Path],
) -> None:
    graph = lower(bundles["bf16"], GRAPH_FILE, DType.BF16).model.graph
    kinds = Counter(node.op_type for node in graph.node)
    host = {"Shape", "Squeeze", "Range", "GatherND", "Split", "Concat", "Slice", "MatMul"}
    assert not host & kinds.keys()
    assert kinds["RotaryEmbedding"] == 2 * kinds["Attention"] == kinds["TensorScatter"] == 4
    assert {one.name for one in graph.input} >= {POSITIONS, LENGTHS, LOGIT_ROWS, "write_indices"}
    assert "logit_indices" not in {one.name for one in graph.input}


def test_weights_that_keep_their_bytes_stay_mapped(bundles: dict[str, Path]) -> None:
    graph = lower(bundles["bf16"], GRAPH_FILE, DType.BF16)
    assert all(isinstance(weight.array, np.memmap) for weight in graph.weights)
    assert {weight.onnx_type for weight in graph.weights} == {DType.BF16.onnx_code}


def test_the_bundle_is_not_altered(bundles: dict[str, Path]) -> None:
    before = (bundles["bf16"] / GRAPH_FILE).read_bytes()
    lower(bundles["bf16"], GRAPH_FILE, DType.BF16)
    assert (bundles["bf16"] / GRAPH_FILE).read_bytes() == before


@pytest.mark.parametrize("operator", ["Attention", "RotaryEmbedding", "GatherND"])
def test_a_graph_of_another_form_is_refused(
    bundles: dict[str, Path], tmp_path: Path, operator: str
) -> None:
    model = onnx.load(bundles["bf16"] / GRAPH_FILE, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == operator:
            node.op_type = "Other"
    (tmp_path / GRAPH_FILE).write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="another form"):
        lower(tmp_path, GRAPH_FILE, DType.BF16)


def test_the_table_names_operators_that_exist() -> None:
    for domain, operator in KERNELS:
        if not domain:
            assert onnx.defs.get_schema(operator, 24).name == operator
