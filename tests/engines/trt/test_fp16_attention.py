"""An engine of a BF16 bundle that attends in FP16: its record, its graph and its session."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.engines import ort_lowering
from nemo_trt.engines.trt.engine_record import EngineRecord
from nemo_trt.engines.trt.lowering import lower
from nemo_trt.engines.trt.probe import attention_graph
from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.errors import BuildError
from nemo_trt.export.bundle import export_bundle
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.passes.promote_types import PromoteTypes
from nemo_trt.precision import DType

from .fake_device import FakeDevice
from .properties import near, tokens, whole
from .standin import FakePlan, record_of
from .test_lowering import T, logits_and_cache, materialise

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: Path, cached: Any) -> dict[DType, Path]:
    """One checkpoint's, in BF16 and in FP16."""

    def make(folder: Path) -> None:
        for precision in (DType.BF16, DType.FP16):
            export_bundle(tiny_checkpoint, folder / precision, precision=precision)

    return {one: cached("tiny-halves", make) / one for one in (DType.BF16, DType.FP16)}


def in_fp16(bundle: Path, precision: str = "bf16") -> EngineRecord:
    record = record_of(bundle, precision=precision)
    return replace(record, options=replace(record.options, kv_cache="fp16"))


def cache_ends(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs and outputs that are keys and values."""
    ends = (*model.graph.input, *model.graph.output)
    return [one for one in ends if one.name.startswith((contract.PAST, "present."))]


def elem_types(values: list[onnx.ValueInfoProto]) -> set[int]:
    return {one.type.tensor_type.elem_type for one in values}


def test_the_session_binds_the_records_cache(bundles: dict[DType, Path]) -> None:
    """The stand-in reads FP16 at the bound addresses, as an engine that attends in FP16 does."""
    device, ids = FakeDevice(), tokens(1, 12)
    with TensorRtSession(
        bundles[DType.BF16],
        in_fp16(bundles[DType.BF16]),
        device=device,
        open_plan=lambda _: FakePlan(bundles[DType.FP16], device),
    ) as session:
        found = session.step(ids[:, :11], np.array([0]), np.array([[10]]))
        near(found[:, 0], whole(bundles[DType.FP16], ids[:, :11])[:, -1], 5e-3)
        found = session.step(ids[:, 11:], np.array([11]), np.array([[0]]))
        near(found[:, 0], whole(bundles[DType.FP16], ids)[:, -1], 5e-3)
        fine = np.full((session.config.num_kv_heads, 1, session.config.head_dim), 1 + 2**-10)
        session.write_cache(0, "key", 0, 12, fine.astype(np.float32))
        assert (session.read_cache(0, "key", 0, 12, 13) == fine).all(), "BF16 would round it to 1"


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_record_says_the_dtype_of_its_cache(precision: str, bundles: dict[DType, Path]) -> None:
    record, config = (
        in_fp16(bundles[DType.BF16], precision),
        Bundle.open(bundles[DType.BF16]).config,
    )
    assert record.attention_dtype is DType.FP16
    assert record.kv_bytes_per_token(config) == config.kv_bytes_per_token(DType.FP16)
    base = replace(record, options=replace(record.options, kv_cache="base"))
    assert base.attention_dtype is DType.BF16
    assert replace(base, precision="fp16").attention_dtype is DType.FP16
    probe = onnx.ModelProto.FromString(attention_graph(config, record.attention_dtype, 64).model)
    assert elem_types(cache_ends(probe)) == {TensorProto.FLOAT16}


def test_records_from_before_are_read_and_other_caches_refused(bundles: dict[DType, Path]) -> None:
    record = record_of(bundles[DType.BF16], precision="bf16")
    assert record.options.kv_cache == "base"
    data = json.loads(record.to_json())
    del data["options"]["kv_cache"]
    assert EngineRecord.from_json(json.dumps(data)) == record
    data["options"]["kv_cache"] = "bf16"
    with pytest.raises(BuildError, match="kv_cache must be one of base, fp16, fp8, got 'bf16'"):
        EngineRecord.from_json(json.dumps(data))
    half = in_fp16(bundles[DType.BF16])
    assert EngineRecord.from_json(half.to_json()) == half
    ids = {one.options.build_id("b", "t", "0") for one in (record, half)}
    assert len(ids) == 2, "another engine"


def test_the_command_that_builds_it_again_says_its_cache(bundles: dict[DType, Path]) -> None:
    bundle = Bundle.open(bundles[DType.BF16])
    assert in_fp16(bundle.path).rebuild_command(bundle).endswith("--kv-cache fp16")
    assert "--kv-cache" not in record_of(bundle.path).rebuild_command(bundle)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_lowered_graph_attends_in_fp16_and_computes_the_same(
    precision: str, small: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = lower(small[precision], GRAPH_FILE, T, in_fp16=True)
    model = onnx.ModelProto.FromString(lowered.model)
    assert len(cache_ends(model)) == 8  # two layers' keys and values, in and out
    assert elem_types(cache_ends(model)) == {TensorProto.FLOAT16}
    assert {one.data_type for one in model.graph.initializer if one.name in lowered.weights} == {
        TensorProto.BFLOAT16,
        *([TensorProto.FLOAT8E4M3FN] if precision == "fp8" else []),
    }, "no weight is stored in FP16, or twice"
    expected = logits_and_cache(small[precision])
    wide = partial(PromoteTypes, half=True)
    monkeypatch.setattr(ort_lowering, "PromoteTypes", lambda **_: wide())
    found = logits_and_cache(materialise(small[precision], tmp_path / "lowered", in_fp16=True))
    for one, other in zip(found, expected, strict=True):
        limit = 1e-5 if precision == "bf16" else 2e-2
        assert np.linalg.norm(one - other) <= limit * np.linalg.norm(other)
