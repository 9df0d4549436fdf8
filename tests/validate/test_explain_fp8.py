"""An FP8 bundle is explained, written for Polygraphy and rehearsed like one of BF16."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from nemo_trt.bundle import Bundle
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.precision import DType
from nemo_trt.quantization import LM_HEAD, Activation, Quantization, groups
from nemo_trt.validate.explain.repro import STORED_MODEL

from . import faults
from .test_explain import explained

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def fp8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = open_checkpoint(tiny_checkpoint)
    every = {group: weights for group, weights in groups(opened.config) if group != LM_HEAD}
    quantization = Quantization(
        weight_scales="per-tensor",
        method="amax",
        calibration={"name": "none", "sha256": "", "samples": 0, "tokens": 0},
        activations={g: Activation(amax=9.0, clip=8.0, shift=0.0, kl=0.0) for g in every},
        weight_amax={
            name: float(np.abs(faults.float32(opened.tensors[name])).max())
            for weights in every.values()
            for name in weights
        },
        kl=0.0,
        max_kl=1.0,
        kept={},
    )
    target = tmp_path_factory.mktemp("fp8") / "bundle"
    export_bundle(opened, target, precision=DType.FP8, quantization=quantization)
    return target


def zeroed(name: str, weights: dict[str, np.ndarray]) -> None:
    weights[name][...] = 0


NAMES: dict[str, Callable[[dict[str, np.ndarray]], None]] = {
    place: partial(zeroed, f"model.layers.{place}.weight")
    for place in ("0.mlp.gate_proj", "1.self_attn.o_proj")
}


@pytest.mark.parametrize("place", NAMES)
def test_a_fault_beyond_fp8s_rounding_is_named(
    place: str, fp8: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    faulty = faults.copy_with(fp8, tmp_path / "b", weights=NAMES[place])
    result = explained(tiny_checkpoint, faulty, tokens=20)
    assert [one.where for one in result.found] == [f"layer {place.replace('.', ' ', 1)}"]
    result.worst.write(tmp_path / "repro", Bundle.open(faulty))
    stored = onnx.load(tmp_path / "repro" / STORED_MODEL)
    assert TensorProto.FLOAT8E4M3FN in {i.data_type for i in stored.graph.initializer}


def test_fp8s_own_rounding_is_no_fault(fp8: Path, tiny_checkpoint: Path) -> None:
    result = explained(tiny_checkpoint, fp8, tokens=20)
    assert result.found == ()
    assert max(one.position_error for one in result.places) > 1e-3


def test_bf16_between_fp8_products_is_rehearsed(fp8: Path) -> None:
    def logits(*, rounding: DType | None) -> np.ndarray:
        with OrtSession.open(fp8, max_seq_len=64, rounding=rounding) as session:
            session.bind(32)
            every = np.arange(20)[None]
            assert session.compute_precision == "fp8"
            return session.step(every + 7, np.zeros(1, np.int64), every)[0].copy()

    exact, rounded = logits(rounding=None), logits(rounding=DType.FP16)
    relative = np.linalg.norm(rounded - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert 1e-4 < relative.mean() < 0.1


def test_between_its_matmuls_an_fp8_bundle_has_fp32s_limits(
    fp8: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    faulty = faults.copy_with(fp8, tmp_path / "b", graph=faults.theta_off_by_one_percent)
    found = explained(tiny_checkpoint, faulty, tokens=20).found
    assert {one.where for one in found} == {"rotary.cos", "rotary.sin"}
