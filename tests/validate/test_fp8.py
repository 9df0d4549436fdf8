"""FP8 on the real model: its quality on text that it never saw, and wrong scales."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from nemo_trt.bundle import Bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.quantization.texts import read_calibration_set
from nemo_trt.manifest import read_manifest
from nemo_trt.quantization import Quantization
from nemo_trt.validate.scales import scale_failures
from nemo_trt.validate.texts import HELD_OUT

from . import faults
from .judge import Judge

pytestmark = pytest.mark.e2e


def quantization_of(bundle: Path) -> Quantization:
    found = read_manifest(bundle).quantization
    assert found is not None
    return found


def test_no_text_calibrates_and_judges() -> None:
    def phrases(texts: Any) -> set[tuple[str, ...]]:
        words = [text.split() for text in texts]
        return {tuple(w[i : i + 8]) for w in words for i in range(len(w) - 7)}

    lines = read_calibration_set().lines
    calibrating = phrases(str(value) for line in lines for value in line.values())
    assert len(lines) >= 128 and len(calibrating) > 1000
    assert not calibrating & phrases(HELD_OUT)


def test_the_quality_that_is_promised(sample_checkpoint: Path, sample_fp8: Path) -> None:
    report = Judge(sample_checkpoint, sample_fp8, prompts=HELD_OUT)(sample_fp8)
    whole = report.cases[0]
    assert report.verdict == "pass", [(c.name, c.failures) for c in report.cases]
    assert len(whole.positions) > 1000
    ratio = report.perplexity["engine"] / report.perplexity["reference"]
    assert ratio <= 1.01 and whole.top1 >= 0.97 and whole.mean_kl <= 0.01
    # And it is FP8 that was judged: the largest groups of the middle layers.
    quantization = quantization_of(sample_fp8)
    assert sum(quantization.is_fp8(group) for group in quantization.activations) >= 10
    assert whole.mean_kl > 0


def test_wrong_scales_of_a_real_model_are_named(
    sample_checkpoint: Path, sample_fp8: Path, tmp_path: Path
) -> None:
    """An input's is four times too small, and those of two layers' weights are exchanged."""
    group, one, other = (f"model.layers.{layer}.mlp." for layer in (16, 15, 17))
    quantization = quantization_of(sample_fp8)
    assert all(quantization.is_fp8(f"{layer}gate_up") for layer in (group, one, other))

    def edit(graph: onnx.GraphProto) -> None:
        for name in (f"{group}gate_up_input.QuantizeLinear.scale", f"{group}gate_up_input.scale"):
            faults.scaled(name, 0.25)(graph)
        by_name = {initializer.name: initializer for initializer in graph.initializer}
        for product in ("gate_proj", "up_proj"):
            names = [f"{layer}{product}.weight_scale" for layer in (one, other)]
            values = [numpy_helper.to_array(by_name[name]) for name in names]
            assert values[0] != values[1]
            for name, value in zip(names, reversed(values), strict=True):
                by_name[name].CopyFrom(numpy_helper.from_array(value, name))

    faulty = Bundle.open(faults.copy_with(sample_fp8, tmp_path / "faulty", graph=edit))
    found = scale_failures(faulty, open_checkpoint(sample_checkpoint))
    for layer, words in (
        (group, "the input scale of"),
        (one, "the scale of"),
        (other, "the scale of"),
    ):
        for product in ("gate_proj", "up_proj"):
            assert any(said.startswith(f"{words} {layer}{product}") for said in found)
    assert all(any(layer in said for layer in (group, one, other)) for said in found)
