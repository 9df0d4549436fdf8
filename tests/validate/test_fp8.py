"""FP8 on the real model: the quality it must have on text it never saw, and two seeded faults."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from nemo_trt.cli.main import run
from nemo_trt.export.quantization.texts import read_calibration_set
from nemo_trt.manifest import read_manifest
from nemo_trt.quantization import Quantization
from nemo_trt.validate.texts import HELD_OUT

from . import faults
from .judge import Judge

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def fp8(sample_checkpoint: Path, cached: Any) -> Path:
    """The sample model as a user would quantise it: a calibration of minutes, so kept."""

    def make(folder: Path) -> None:
        command = ["export", str(sample_checkpoint), str(folder / "bundle"), "--precision", "fp8"]
        assert run(command) == 0

    rooms = ("nemo_trt", "export", "engines", "validate", "cli")
    return Path(cached("sample-fp8", make, rooms=rooms) / "bundle")


@pytest.fixture(scope="module")
def judge(sample_bundle: Any, fp8: Path) -> Judge:
    return Judge(sample_bundle.checkpoint, fp8, prompts=HELD_OUT)


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


def test_the_quality_that_is_promised(fp8: Path, judge: Judge) -> None:
    report = judge(fp8)
    whole = report.cases[0]
    assert report.verdict == "pass", [(c.name, c.failures) for c in report.cases]
    assert len(whole.positions) > 1000
    ratio = report.perplexity["engine"] / report.perplexity["reference"]
    assert ratio <= 1.01 and whole.top1 >= 0.97 and whole.mean_kl <= 0.01
    # And it is FP8 that was judged: the largest groups of the middle layers.
    quantization = quantization_of(fp8)
    assert sum(quantization.is_fp8(group) for group in quantization.activations) >= 10
    assert whole.mean_kl > 0


def test_an_activation_scale_four_times_too_small_fails(
    fp8: Path, judge: Judge, tmp_path: Path
) -> None:
    group = "model.layers.16.mlp.gate_up"
    assert quantization_of(fp8).is_fp8(group)

    def edit(graph: onnx.GraphProto) -> None:
        for name in (f"{group}_input.QuantizeLinear.scale", f"{group}_input.scale"):
            faults.scaled(name, 0.25)(graph)

    faulty = faults.copy_with(fp8, tmp_path / "faulty", graph=edit)
    report = judge(faulty)
    assert report.verdict == "fail" and any(
        group.split(".mlp")[0] in words for words in report.failures
    )


def test_weight_scales_of_two_layers_exchanged_fail(
    fp8: Path, judge: Judge, tmp_path: Path
) -> None:
    one, other = "model.layers.15.mlp.", "model.layers.17.mlp."
    quantization = quantization_of(fp8)
    assert quantization.is_fp8(f"{one}gate_up") and quantization.is_fp8(f"{other}gate_up")

    def exchange(graph: onnx.GraphProto) -> None:
        by_name = {initializer.name: initializer for initializer in graph.initializer}
        for product in ("gate_proj", "up_proj"):
            names = [f"{layer}{product}.weight_scale" for layer in (one, other)]
            values = [numpy_helper.to_array(by_name[name]) for name in names]
            assert values[0] != values[1]
            for name, value in zip(names, reversed(values), strict=True):
                by_name[name].CopyFrom(numpy_helper.from_array(value, name))

    faulty = faults.copy_with(fp8, tmp_path / "faulty", graph=exchange)
    report = judge(faulty)
    assert report.verdict == "fail" and any(
        f"the scale of {one}" in words for words in report.failures
    )
