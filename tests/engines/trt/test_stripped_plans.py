"""Stripped plans, really compiled: as many kernels as plans that hold their weights, and none."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.engines.trt import compile as compiling
from nemo_trt.engines.trt.engine_record import read_record
from nemo_trt.engines.trt.stripped import digest_of, taken_weights
from nemo_trt.errors import BuildError

from .test_builder import OPTIONS, build

pytestmark = pytest.mark.e2e

pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")


@pytest.mark.parametrize(
    ("gpu", "sm", "precision"), [("l4", 89, "bf16"), ("l4", 89, "fp8"), ("rtx5090", 120, "fp8")]
)
def test_a_stripped_plan_has_the_same_kernels_and_no_weights(
    gpu: str, sm: int, precision: str, small: dict[str, Path]
) -> None:
    bundle, options = Bundle.open(small[precision]), replace(OPTIONS, target=gpu, sm=sm)
    base, _ = build(bundle, options)
    record, built = build(bundle, replace(options, strip=True))
    assert built and record.name == f"{base.name}-stripped" and base.stripped is None
    (plan,), (whole,) = record.plans, base.plans
    assert plan.launches_per_layer == whole.launches_per_layer
    assert plan.scratch_bytes == whole.scratch_bytes
    weights = taken_weights(bundle)
    assert record.stripped == digest_of(weights) and record.weight_bytes == base.weight_bytes
    assert read_record(bundle, record.name) == record
    assert build(bundle, replace(options, strip=True)) == (record, False)
    assert build(bundle, options) == (base, False), "they lie beside each other"
    read = [(bundle.engine_folder(one.name) / "engine.plan").read_bytes() for one in (base, record)]
    pieces = [weight.read().tobytes()[:32] for weight in weights.values() if len(weight.shape) > 1]
    held, stripped = ([piece in data for piece in pieces] for data in read)
    assert any(held) and not any(stripped)


def test_a_plan_that_would_convert_or_copy_weights_in_every_step_is_refused(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    strip = replace(OPTIONS, strip=True, max_batch=1)
    with pytest.raises(BuildError, match=r"o_proj\.weight of .* would be converted in every step"):
        build(small["bf16"], replace(strip, kv_cache="fp16"))
    monkeypatch.setattr(compiling, "multiply_as_stored", lambda *_: None)
    with pytest.raises(BuildError, match=r"merged\.weight where it lies, but .* copies it in"):
        build(small["bf16"], strip)
