"""FP8 bundles: bytes, graph and numbers, against ml_dtypes, PyTorch and ONNX Runtime alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.errors import ExportError
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.decoder import Decoder
from nemo_trt.export.quantization.calibrate import calibrate
from nemo_trt.export.quantization.graph import set_scales
from nemo_trt.export.quantization.weights import scales_of
from nemo_trt.export.samples import write_seeded
from nemo_trt.export.trace import numerics_of, trace_decoder
from nemo_trt.manifest import GRAPH_FILE, read_manifest
from nemo_trt.precision import DType
from nemo_trt.progress import Silent
from nemo_trt.quantization import Quantization
from nemo_trt.safetensors import read_layout

pytestmark = pytest.mark.model

TOKENS = np.random.default_rng(3).integers(0, 512, (2, 12))
KEPT = {"model.layers.1.mlp.down": "x", "model.layers.0.self_attn.qkv": "y"}


@pytest.fixture(scope="module")
def quantization(tiny_checkpoint: Path) -> Quantization:
    samples = [TOKENS[0].tolist(), TOKENS[1].tolist()]
    return calibrate(
        open_checkpoint(tiny_checkpoint),
        samples,
        calibration={"name": "test"},
        max_kl=100.0,
        progress=Silent(),
    )


def exported(checkpoint: Path, target: Path, quantization: Quantization) -> Path:
    export_bundle(checkpoint, target, precision=DType.FP8, quantization=quantization)
    return target


@pytest.fixture(scope="module")
def bundle(
    tiny_checkpoint: Path, quantization: Quantization, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tmp_path_factory.mktemp("fp8") / "bundle"
    return exported(tiny_checkpoint, target, quantization)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def bf16(ref: Any) -> np.ndarray:
    return np.array(ref.read()).view(ml_dtypes.bfloat16).astype(np.float32)


def test_weights_are_what_ml_dtypes_rounds_them_to(
    tiny_checkpoint: Path, bundle: Path, quantization: Quantization
) -> None:
    sources = open_checkpoint(tiny_checkpoint).tensors
    stored = read_layout(bundle / "weights" / "model.safetensors")
    assert list(stored) == [name for name, _ in open_checkpoint(tiny_checkpoint).config.tensors()]
    for layer in range(2):
        names = tuple(f"model.layers.{layer}.self_attn.{x}_proj.weight" for x in "qkv")
        scale = np.float32(quantization.weight_scale(names))
        largest = max(float(np.abs(bf16(sources[name])).max()) for name in names)
        assert scale == np.float32(ml_dtypes.bfloat16(np.float32(largest / 448)))
        for name in names:
            ratio = np.clip(bf16(sources[name]) / scale, -448, 448)
            expected = ratio.astype(ml_dtypes.float8_e4m3fn)
            assert stored[name].dtype is DType.FP8
            assert np.array_equal(stored[name].read(), expected.view(np.uint8))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert np.array_equal(stored[name].read(), sources[name].read())


def test_weights_of_other_dtypes_are_rounded_the_same(
    tiny_checkpoint: Path, quantization: Quantization, tmp_path: Path, bundle: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    wide = tmp_path / "wide"
    shutil.copytree(tiny_checkpoint, wide)
    file = wide / "model.safetensors"
    save_file({k: v.float() for k, v in load_file(file).items()}, file, {"format": "pt"})
    other = exported(wide, tmp_path / "fp8", quantization)
    found = read_layout(other / "weights" / "model.safetensors")
    for name, ref in read_layout(bundle / "weights" / "model.safetensors").items():
        if ref.dtype is DType.FP8:
            assert np.array_equal(found[name].read(), ref.read())


def test_a_second_export_is_byte_for_byte_the_first(
    tiny_checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    samples = [TOKENS[0].tolist(), TOKENS[1].tolist()]
    again = calibrate(
        open_checkpoint(tiny_checkpoint),
        samples,
        calibration={"name": "test"},
        max_kl=100.0,
        progress=Silent(),
    )
    second = exported(tiny_checkpoint, tmp_path / "second", again)
    assert contents(second) == contents(bundle)


def test_the_scales_of_a_bundle_make_the_same_bundle(
    tiny_checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    read = read_manifest(bundle).quantization
    assert read is not None
    assert contents(exported(tiny_checkpoint, tmp_path / "again", read)) == contents(bundle)


@torch.no_grad()
def eager_logits(checkpoint: Path, bundle: Path, quantization: Quantization) -> np.ndarray:
    """The decoder's own FP8 form in fp32, as ONNX Runtime computes the bundle."""
    opened = open_checkpoint(checkpoint)
    numerics = replace(numerics_of(opened.config, DType.FP8, quantization), dtype=torch.float32)
    model = Decoder(opened.config, numerics)
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in scales_of(opened, quantization).items()
    }
    for name, ref in read_layout(bundle / "weights" / "model.safetensors").items():
        array = torch.from_numpy(np.array(ref.read()))
        if ref.dtype is DType.FP8:
            state[name] = array.view(torch.float8_e4m3fn)
        else:
            state[name] = array.view(torch.bfloat16).float()
    model.load_state_dict(state)
    config = opened.config
    shape = (2, config.num_kv_heads, 32, config.head_dim)
    past = [torch.zeros(shape) for _ in range(2 * config.num_layers)]
    every = torch.arange(12).expand(2, 12)
    logits, _ = model(torch.from_numpy(TOKENS), torch.zeros(2, dtype=torch.int64), every, past)
    return np.asarray(logits.numpy())


def ort_logits(bundle: Path) -> np.ndarray:
    with OrtSession.open(bundle, max_batch=2, max_seq_len=64) as session:
        assert session.compute_precision == "fp8"
        session.bind(12)
        every = np.tile(np.arange(12), (2, 1))
        return session.step(TOKENS, np.zeros(2, np.int64), every).copy()


@pytest.mark.parametrize("weight_scales", ["per-tensor", "per-channel"])
@pytest.mark.parametrize("kept", [{}, KEPT], ids=["all", "some kept"])
def test_the_graph_rounds_as_the_decoder_does(
    weight_scales: Any,
    kept: dict[str, str],
    tiny_checkpoint: Path,
    quantization: Quantization,
    tmp_path: Path,
) -> None:
    chosen = replace(quantization, weight_scales=weight_scales, kept=kept)
    bundle = exported(tiny_checkpoint, tmp_path / "bundle", chosen)
    expected = eager_logits(tiny_checkpoint, bundle, chosen)
    found = ort_logits(bundle)
    # A number on the edge between two of E4M3's may fall to either side.
    assert np.linalg.norm(found - expected) <= 5e-3 * np.linalg.norm(expected)
    unquantised = tmp_path / "bf16"
    export_bundle(tiny_checkpoint, unquantised, precision=DType.FP32)
    with OrtSession.open(unquantised, max_batch=2, max_seq_len=64) as session:
        session.bind(12)
        every = np.tile(np.arange(12), (2, 1))
        exact = session.step(TOKENS, np.zeros(2, np.int64), every)
    assert np.linalg.norm(found - exact) >= 1e-2 * np.linalg.norm(exact)  # it does round


def test_onnx_runtime_dequantises_weights_as_our_session_does(bundle: Path) -> None:
    """Its own DequantizeLinear of one weight against what `lower` hands it."""
    from nemo_trt.engines.ort_lowering import lower

    name = "model.layers.1.mlp.up_proj.weight"
    model = onnx.load(bundle / GRAPH_FILE, load_external_data=False)
    (node,) = (n for n in model.graph.node if name in n.input)
    scale = next(i for i in model.graph.initializer if i.name == node.input[1])
    ref = read_layout(bundle / "weights" / "model.safetensors")[name]
    value = numpy_helper.to_array(scale).astype(np.float32)
    weight = onnx.helper.make_tensor(name, 17, ref.shape, np.array(ref.read()).tobytes(), raw=True)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("DequantizeLinear", [name, "scale"], ["y"])],
        "one",
        [],
        [onnx.helper.make_tensor_value_info("y", 1, ref.shape)],
        [weight, numpy_helper.from_array(value, "scale")],
    )
    opset = onnx.helper.make_opsetid("", 24)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, {})
    handed = {one.name: one.array for one in lower(bundle, GRAPH_FILE)[1]}
    assert np.array_equal(handed[name], expected)


def test_each_scale_has_one_reader_and_every_quantisation_says_fp8(bundle: Path) -> None:
    graph = onnx.load(bundle / GRAPH_FILE, load_external_data=False).graph
    scaled = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = [node.input[1] for node in scaled]
    assert len(scaled) == 2 * (2 * 4 + 7) and len(set(scales)) == len(scales)
    dtypes = {i.name: i.data_type for i in graph.initializer}
    assert {dtypes[name] for name in scales} == {onnx.TensorProto.BFLOAT16}
    for node in scaled:
        if node.op_type == "QuantizeLinear":
            assert {a.name: a.i for a in node.attribute}["output_dtype"] == 17


def test_shared_scales_get_copies(tiny_checkpoint: Path, quantization: Quantization) -> None:
    opened = open_checkpoint(tiny_checkpoint)
    numerics = numerics_of(opened.config, DType.FP8, quantization)
    model = trace_decoder(opened.config, DType.FP8, numerics)

    def shared() -> list[ir.Value]:
        scales = [v for name, v in model.graph.initializers.items() if name.endswith("scale")]
        return [scale for scale in scales if len(list(scale.uses())) > 1]

    assert shared()  # the trace shares them
    set_scales(model.graph, scales_of(opened, quantization))
    assert not shared()


def test_scales_of_another_checkpoint_are_refused(
    tiny_checkpoint: Path, quantization: Quantization, tmp_path: Path
) -> None:
    smaller = {name: amax / 2 for name, amax in quantization.weight_amax.items()}
    with pytest.raises(ExportError, match="another checkpoint"):
        exported(tiny_checkpoint, tmp_path / "a", replace(quantization, weight_amax=smaller))
    three = tmp_path / "three"
    write_seeded(three, replace(open_checkpoint(tiny_checkpoint).config, num_layers=3))
    with pytest.raises(ExportError, match="this model's groups"):
        exported(three, tmp_path / "b", quantization)
    with pytest.raises(ExportError, match="amax of"):
        exported(tiny_checkpoint, tmp_path / "c", replace(quantization, weight_amax={}))
    with pytest.raises(ExportError, match="for FP8 and for nothing else"):
        export_bundle(tiny_checkpoint, tmp_path / "d", precision=DType.FP8)
    with pytest.raises(ExportError, match="for FP8 and for nothing else"):
        export_bundle(
            tiny_checkpoint, tmp_path / "e", precision=DType.BF16, quantization=quantization
        )
    assert not {"a", "b", "c", "d", "e"} & {path.name for path in tmp_path.iterdir()}


def test_the_head_can_be_fp8_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    chosen = calibrate(
        open_checkpoint(tiny_checkpoint),
        [TOKENS[0].tolist()],
        calibration={},
        max_kl=100.0,
        fp8_lm_head=True,
        progress=Silent(),
    )
    bundle = exported(tiny_checkpoint, tmp_path / "bundle", chosen)
    stored = read_layout(bundle / "weights" / "model.safetensors")
    assert stored["lm_head.weight"].dtype is DType.FP8
    expected = eager_logits(tiny_checkpoint, bundle, chosen)
    assert np.linalg.norm(ort_logits(bundle) - expected) <= 5e-3 * np.linalg.norm(expected)
