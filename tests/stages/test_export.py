"""`export_checkpoint` hands on every option, and refuses what does not apply before any work."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt.errors import ExportError
from nemo_trt.precision import DType
from nemo_trt.stages import export as exporting
from nemo_trt.stages.export import Fp8Options, export_checkpoint

pytestmark = pytest.mark.model

CALIBRATED = Fp8Options(
    calibration=Path("texts"),
    samples=4,
    scales=Path("scales"),
    clip="mse",
    max_kl=0.5,
    fp8_weights="per-channel",
    fp8_lm_head=True,
    device="cuda",
)


class Calls:
    """The functions of the stage, which do nothing and note what they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fp8: bool = False) -> None:
        self.seen: dict[str, tuple[Any, ...]] = {}
        self.opened = SimpleNamespace(fp8=fp8, path=Path("c"))
        made = {
            "open_checkpoint": "opened",
            "merge_adapters": self.opened,
            "require_tokenizer": None,
            "require_target": None,
            "quantize": "scales",
            "merge_scales": "merged",
            "stored_quantization": "stored scales",
            "export_bundle": "manifest",
        }
        for name, result in made.items():
            monkeypatch.setattr(exporting, name, self.noted(name, result))

    def noted(self, name: str, result: object) -> Any:
        def call(*arguments: Any, **named: Any) -> object:
            self.seen[name] = (*arguments, named)
            return result

        return call


def test_every_option_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, adapter, progress = Calls(monkeypatch), object(), object()
    given: Any = {"adapters": (adapter,), "progress": progress}
    made = export_checkpoint(
        Path("c"), Path("b"), precision="fp8", weights="in-place", format="hf", sha256=True,
        force=True, fp8=CALIBRATED, **given,
    )  # fmt: skip
    assert (made.path, made.manifest) == (Path("b"), "manifest")
    opening = {"dequantise": False, "keep_fp8": True}
    assert calls.seen["open_checkpoint"] == (Path("c"), "hf", opening)
    assert calls.seen["merge_adapters"] == ("opened", [adapter], {})
    assert calls.seen["require_tokenizer"] == (calls.opened, {})
    target = {"precision": DType.FP8, "weights": "in-place", "force": True}
    assert calls.seen["require_target"] == (calls.opened, Path("b"), target)
    calibrated = {one.name: getattr(CALIBRATED, one.name) for one in fields(CALIBRATED)}
    del calibrated["merge_scales"]
    assert calls.seen["quantize"][0] is calls.opened
    assert calls.seen["quantize"][-1] == {**calibrated, "progress": progress}
    rest = {**target, "sha256": True, "quantization": "scales", "progress": progress}
    assert calls.seen["export_bundle"] == (calls.opened, Path("b"), rest)


def test_fp8_weights_keep_their_scales_or_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, fp8=True)
    export_checkpoint(Path("c"), Path("b"), precision="fp8")
    assert calls.seen["stored_quantization"] == (calls.opened, {})
    assert calls.seen["export_bundle"][-1]["quantization"] == "stored scales"
    export_checkpoint(Path("c"), Path("b"), precision="fp8", fp8=Fp8Options(merge_scales=True))
    assert calls.seen["merge_scales"] == (calls.opened, {})
    assert calls.seen["export_bundle"][0] == "merged" and "quantize" not in calls.seen


@pytest.mark.parametrize(
    ("precision", "stored", "fp8", "words"),
    [
        ("bf16", False, Fp8Options(), "must go with precision fp8, got bf16"),
        (None, False, Fp8Options(), "must go with precision fp8, got None"),
        ("fp8", True, Fp8Options(samples=4), "leave --samples out"),
        ("fp8", True, Fp8Options(fp8_lm_head=True), "leave --fp8-lm-head out"),
        ("fp8", False, Fp8Options(merge_scales=True), "is for checkpoints of FP8 weights"),
    ],
)
def test_an_option_that_does_not_apply_is_refused(
    precision: str | None, stored: bool, fp8: Fp8Options, words: str, monkeypatch: Any
) -> None:
    calls = Calls(monkeypatch, fp8=stored)
    with pytest.raises(ExportError, match=words):
        export_checkpoint(Path("c"), Path("b"), precision=precision, fp8=fp8)
    assert not calls.seen.keys() & {"quantize", "export_bundle"}


def test_dequantised_weights_are_calibrated_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    export_checkpoint(Path("c"), Path("b"), precision="fp8", dequantise=True)
    assert calls.seen["open_checkpoint"][-1] == {"dequantise": True, "keep_fp8": False}
    assert "quantize" in calls.seen
    export_checkpoint(Path("c"), Path("b"), precision="bf16")
    assert calls.seen["open_checkpoint"][-1] == {"dequantise": False, "keep_fp8": False}
    assert calls.seen["export_bundle"][-1]["quantization"] is None
