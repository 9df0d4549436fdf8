"""The graph that TensorRT is given computes what the bundle's graph computes: on ONNX Runtime."""

import shutil
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nemo_trt.digest import quick_digest, sha256_file
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.trt.lowering import lower
from nemo_trt.manifest import GRAPH_FILE, MANIFEST_FILE, WeightFile, read_manifest
from nemo_trt.precision import DType
from nemo_trt.safetensors import read_layout, write_stream
from tests.engines.tail import without_candidates

pytestmark = pytest.mark.model

T = 256  # what the session's cache grows to first


def materialise(bundle: Path, target: Path, *, in_fp16: bool = False) -> Path:
    """The lowered graph as a bundle of its own, its merged weights in a file."""
    lowered = lower(bundle, GRAPH_FILE, capacity=T, in_fp16=in_fp16)
    model = without_candidates(onnx.ModelProto.FromString(lowered.model))
    (target / "weights").mkdir(parents=True)
    file = target / "weights" / "model.safetensors"
    outside = [i for i in model.graph.initializer if i.name in lowered.weights]
    codes = {dtype.onnx_code: dtype for dtype in DType}
    layout = [(one.name, codes[one.data_type], tuple(one.dims)) for one in outside]
    write_stream(file, layout, (memoryview(lowered.weights[one.name]) for one in outside))
    refs = read_layout(file)
    for one in outside:
        del one.external_data[:]
        one.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (
            ("location", "weights/model.safetensors"),
            ("offset", refs[one.name].offset),
            ("length", refs[one.name].num_bytes),
        ):
            one.external_data.add(key=key, value=str(value))
    onnx.save(model, target / GRAPH_FILE)
    weight = WeightFile(
        file="weights/model.safetensors",
        num_bytes=file.stat().st_size,
        quick_digest=quick_digest(file),
    )
    manifest = replace(
        read_manifest(bundle),
        graph_sha256=sha256_file(target / GRAPH_FILE),
        weights=(weight,),
        tokenizer_files=(),
    )
    (target / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return target


def logits_and_cache(bundle: Path) -> list[np.ndarray]:
    """A ragged batch in two chunks, then a step of decode; and the caches."""
    ids = np.random.default_rng(2).integers(0, 512, (2, 15))
    found = []
    with OrtSession.open(bundle, max_batch=2, max_seq_len=T, threads=1) as session:
        session.bind(T)
        assert session.capacity == T
        every = np.tile(np.arange(7), (2, 1))
        for start in (0, 7):
            where = np.full(2, start)
            found.append(session.step(ids[:, start : start + 7], where, every).copy())
        found.append(session.step(ids[:, 14:], np.array([14, 9]), np.zeros((2, 1), int)).copy())
        for layer in range(session.config.num_layers):
            found += [session.read_cache(layer, kind, 1, 0, 15) for kind in ("key", "value")]
    return found


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_lowered_graph_computes_the_same(
    precision: str, small: dict[str, Path], tmp_path: Path
) -> None:
    expected = logits_and_cache(small[precision])
    found = logits_and_cache(materialise(small[precision], tmp_path / "lowered"))
    for one, other in zip(found, expected, strict=True):
        # Products of another shape add up in another order; FP8 rounds that to another neighbour.
        limit = 1e-5 if precision == "bf16" else 2e-2
        assert np.linalg.norm(one - other) <= limit * np.linalg.norm(other)
        assert np.linalg.norm(other) > 0


def test_products_whose_scales_differ_are_not_merged(
    small: dict[str, Path], tmp_path: Path
) -> None:
    """One scale a merged product: another one would silently be applied to the wrong rows."""
    bundle = tmp_path / "bundle"
    shutil.copytree(small["fp8"], bundle)
    model = onnx.load(bundle / GRAPH_FILE, load_external_data=False)
    by_name = {one.name: one for one in model.graph.initializer}
    (reader,) = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] == "model.layers.0.self_attn.k_proj.weight"
    ]
    scale = by_name[reader.input[1]]
    twice = 2 * numpy_helper.to_array(scale)
    scale.CopyFrom(numpy_helper.from_array(twice.astype(ml_dtypes.bfloat16), scale.name))
    onnx.save(model, bundle / GRAPH_FILE)
    manifest = replace(read_manifest(small["fp8"]), graph_sha256=sha256_file(bundle / GRAPH_FILE))
    (bundle / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    merged = lower(small["fp8"], GRAPH_FILE, capacity=T)
    assert lower(bundle, GRAPH_FILE, capacity=T).num_fp8_products == merged.num_fp8_products + 1
    found = logits_and_cache(materialise(bundle, tmp_path / "lowered"))
    for one, other in zip(found, logits_and_cache(bundle), strict=True):
        assert np.linalg.norm(one - other) <= 2e-2 * np.linalg.norm(other)
