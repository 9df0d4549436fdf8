"""A value that an option does not have is refused in one of our errors, before any work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.trt.engine_record import BuildOptions
from nemo_trt.errors import BuildError, MachineError, RequestError
from nemo_trt.export import checkpoints
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.checkpoints.fp8 import StoredScales
from nemo_trt.export.quantization.calibrate import calibrate
from nemo_trt.progress import Silent
from nemo_trt.stages.export import Fp8Options, export_checkpoint
from nemo_trt.stages.plan import plan_engine, planned

pytestmark = pytest.mark.model
BUILD: dict[str, Any] = {
    "target": "l4",
    "sm": 89,
    "max_seq_len": 64,
    "max_batch": 1,
    "prefill_chunk": 8,
    "max_logits": 8,
}
WRONG: dict[str, tuple[Callable[[Path, Path, Any], object], str]] = {
    "export precision": (
        lambda c, target, x: export_checkpoint(c, target, precision=x),
        "precision must be one of bf16, fp16, fp32, fp8",
    ),
    "export weights": (
        lambda c, target, x: export_checkpoint(c, target, weights=x),
        "weights must be one of copy, in-place",
    ),
    "clip": (lambda c, target, x: Fp8Options(clip=x), "clip must be one of amax, percentile, mse"),
    "fp8_weights": (lambda c, target, x: Fp8Options(fp8_weights=x), "fp8_weights must be one of"),
    "plan precision": (lambda c, target, x: planned(c, x), "precision must be one of"),
    "attention": (lambda c, target, x: BuildOptions(**BUILD, attention=x), "attention must be one"),
    "kv_cache": (lambda c, target, x: BuildOptions(**BUILD, kv_cache=x), "kv_cache must be one of"),
}


@pytest.mark.parametrize("value", ["unknown", "", "int64", 7])
@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_is_no_choice_is_refused(
    name: str, value: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    call, message = WRONG[name]
    with pytest.raises(RequestError, match=f"{message}.*, got {value!r}"):
        call(tiny_checkpoint, tmp_path / "target", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"samples": 0}, {"max_kl": -1.0}, {"max_kl": float("nan")}])
def test_a_number_of_the_calibration_out_of_its_range_is_refused(options: Any) -> None:
    (name,) = options
    with pytest.raises(RequestError, match=f"{name} must be at least [01], got"):
        Fp8Options(**options)
    Fp8Options(samples=1, max_kl=0.0)


def test_an_optimisation_level_out_of_its_range_is_refused() -> None:
    with pytest.raises(RequestError, match="opt_level must be from 0 to 5, got 6"):
        BuildOptions(**BUILD, opt_level=6)
    assert [BuildOptions(**BUILD, opt_level=one).opt_level for one in (0, 5, None)] == [0, 5, None]


@pytest.mark.parametrize("device", ["unknown", "meta", "cuda:99"])
def test_a_device_on_which_pytorch_cannot_compute_is_named(
    device: str, tiny_checkpoint: Path
) -> None:
    with pytest.raises(MachineError, match=f"on the device, got '{device}': "):
        calibrate(
            open_checkpoint(tiny_checkpoint),
            [[1, 2]],
            calibration={},
            max_kl=1.0,
            device=device,
            progress=Silent(),
        )


def test_a_bundle_is_planned_in_its_own_precision_or_as_if_exported_again(tiny: Any) -> None:
    own = planned(tiny.bundle)
    assert own.precision == "fp32" and planned(tiny.bundle, "fp32") == own
    half = planned(tiny.bundle, "bf16")
    assert (half.precision, half.config) == ("bf16", own.config)
    assert half.weight_bytes == 2 * own.config.num_parameters


def test_an_fp8_cache_is_planned_only_where_the_export_would_calibrate(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of FP8 weights keeps its own scales, and has none for a cache."""
    fp8: Any = {"kv_cache": "fp8", "paged": True}
    assert plan_engine(tiny_checkpoint, "l4", precision="fp8", **fp8).kv_bytes > 0
    scales = StoredScales(weight=np.ones((), np.float32), input=1.0)
    opened = replace(open_checkpoint(tiny_checkpoint), fp8={"a.weight": scales})
    monkeypatch.setattr(checkpoints, "open_checkpoint", lambda *_, **__: opened)
    assert planned(tiny_checkpoint).precision == "fp8"
    with pytest.raises(BuildError, match="needs the scales of a calibration"):
        plan_engine(tiny_checkpoint, "l4", **fp8)
