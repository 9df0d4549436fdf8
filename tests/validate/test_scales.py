"""FP8 scales: the graph's are the manifest's record and fit the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import Checkpoint, open_checkpoint
from nemo_trt.precision import DType
from nemo_trt.quantization import LM_HEAD, Activation, Quantization, groups
from nemo_trt.validate.scales import scale_failures

from . import faults
from .faults import scaled
from .judge import Judge

pytestmark = pytest.mark.model

GROUP, WEIGHT = "model.layers.1.mlp.gate_up", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module", params=["per-tensor", "per-channel"])
def fp8(request: Any, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in FP8, one group kept in BF16."""
    every = {group: weights for group, weights in groups(checkpoint.config) if group != LM_HEAD}
    amax = {
        name: float(np.abs(faults.float32(checkpoint.tensors[name])).max())
        for weights in every.values()
        for name in weights
    }
    quantization = Quantization(
        weight_scales=request.param,
        method="amax",
        calibration={"name": "none", "sha256": "", "samples": 0, "tokens": 0},
        activations={g: Activation(amax=9.0, clip=8.0, shift=0.0, kl=0.0) for g in every},
        weight_amax=amax,
        kl=0.0,
        max_kl=1.0,
        kept={"model.layers.0.self_attn.o": "for the test"},
    )
    target = tmp_path_factory.mktemp("fp8") / "bundle"
    export_bundle(checkpoint, target, precision=DType.FP8, quantization=quantization)
    return target


def exchange_bytes(weights: dict[str, np.ndarray]) -> None:
    other = WEIGHT.replace("up_proj", "gate_proj")
    weights[WEIGHT][...], weights[other][...] = weights[other].copy(), weights[WEIGHT].copy()


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a weight's scale is 5 % too large": (
        {"graph": scaled(f"{WEIGHT}_scale", 1.05)},
        WEIGHT,
    ),
    "a weight's scale is 5 % too small": (
        {"graph": scaled(f"{WEIGHT}_scale", 0.95)},
        WEIGHT,
    ),
    "an input's scale is 5 % too large": (
        {"graph": scaled(f"{GROUP}_input.scale", 1.05)},
        "the input scale of",
    ),
    "two weights of one group are exchanged": ({"weights": exchange_bytes}, "the checkpoint's"),
}


def test_sound_scales_pass(fp8: Path, checkpoint: Checkpoint, tiny: Any) -> None:
    assert scale_failures(Bundle.open(fp8), checkpoint) == ()
    assert scale_failures(Bundle.open(tiny.bundle), checkpoint) == ()  # not FP8


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_scale_is_named(
    name: str, fp8: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    edits, said = FAULTS[name]
    faulty = Bundle.open(faults.copy_with(fp8, tmp_path / "faulty", **edits))
    found = scale_failures(faulty, checkpoint)
    assert found and said in found[0]


def test_a_wrong_scale_fails_the_verdict(fp8: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By itself: logits that are 5 % off in one weight are within FP8's limits."""
    judge = Judge(checkpoint, fp8)
    sound = judge(fp8)
    assert sound.failures == () and sound.verdict == "pass"
    faulty = faults.copy_with(fp8, tmp_path / "faulty", graph=scaled(f"{WEIGHT}_scale", 1.05))
    report = judge(faulty)
    assert report.verdict == "fail" and any(WEIGHT in words for words in report.failures)


def test_one_channels_scale_is_judged_alone(
    fp8: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    if Bundle.open(fp8).manifest.quantization.weight_scales == "per-tensor":  # type: ignore[union-attr]
        pytest.skip("one scale a weight")
    edit = scaled(f"{WEIGHT}_scale", 1.05, slice(7, 8))
    faulty = Bundle.open(faults.copy_with(fp8, tmp_path / "faulty", graph=edit))
    assert any("in row 7" in words for words in scale_failures(faulty, checkpoint))


def test_a_group_that_the_manifest_keeps_must_not_be_fp8(
    fp8: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    true: Callable[..., bool] = Quantization.is_fp8
    kept = lambda self, group: group != GROUP and true(self, group)  # noqa: E731
    monkeypatch.setattr(Quantization, "is_fp8", kept)
    found = scale_failures(Bundle.open(fp8), checkpoint)
    assert any(f"{WEIGHT} must be BF16 by the manifest" in words for words in found)


def test_a_group_that_the_manifest_has_in_fp8_must_be(
    fp8: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Quantization, "is_fp8", lambda self, group: group != LM_HEAD)
    (found,) = scale_failures(Bundle.open(fp8), checkpoint)
    assert found.startswith("model.layers.0.self_attn.o_proj.weight must be FP8 by the manifest")


def test_an_fp8_weight_whose_input_is_not_quantised_is_named(
    fp8: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def skip(graph: Any) -> None:
        """The matmul of the weight reads what was quantised."""
        producers = {output: node for node in graph.node for output in node.output}

        def before(name: str, *operators: str) -> str:
            node = producers.get(name)
            return before(node.input[0], *operators) if node and node.op_type in operators else name

        for node in (one for one in graph.node if one.op_type == "MatMul"):
            if before(node.input[1], "Transpose", "DequantizeLinear") == WEIGHT:
                node.input[0] = before(node.input[0], "DequantizeLinear", "QuantizeLinear")

    faulty = Bundle.open(faults.copy_with(fp8, tmp_path / "faulty", graph=skip))
    found = scale_failures(faulty, checkpoint)
    assert f"the input of {WEIGHT} must be quantised and dequantised, and is not" in found
