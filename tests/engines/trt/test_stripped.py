"""Stripped engines: which weights they take, and the session that gives them, on a stand-in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import run
from nemo_trt.engines.planner import engine_budget
from nemo_trt.engines.targets import target_named
from nemo_trt.engines.trt.attention.place import Placement
from nemo_trt.engines.trt.engine_record import EngineRecord
from nemo_trt.engines.trt.lowering import lower
from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.engines.trt.stripped import digest_of, taken_weights
from nemo_trt.errors import BuildError, MachineError
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.samples import write_seeded
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.precision import DType

from .fake_device import FakeDevice
from .properties import PROPERTIES, near, tokens, whole
from .standin import PROFILES, T, plan_of, record_of
from .test_session import KINDS, both_profiles, bundle

pytestmark = pytest.mark.model
__all__ = ["bundle"]  # the fixture


def stripped(bundle: Path, attention: str = "native") -> EngineRecord:
    record = both_profiles(bundle, attention)
    digest = digest_of(taken_weights(Bundle.open(bundle)))
    return replace(record, options=replace(record.options, strip=True), stripped=digest)


def opened(bundle: Path, device: FakeDevice, attention: str = "native") -> TensorRtSession:
    return KINDS[attention](
        bundle,
        stripped(bundle, attention),
        device=device,
        open_plan=lambda _: plan_of(bundle, device, attention, stripped=True),
    )


@pytest.mark.parametrize("attention", ["native", "paged"])
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_properties_of_every_session(
    holds: Callable[..., None], attention: str, bundle: Path
) -> None:
    """The stand-in computes with what lies where weights were bound."""
    with opened(bundle, FakeDevice(), attention) as session:
        holds(session, bundle, limit=5e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize(
    "how",
    [{}, {"in_fp16": True}, {"paged": Placement(page=16, base=DType.BF16, fp8=None)}],
    ids=["native", "fp16", "paged"],
)
def test_what_is_taken_is_what_a_plan_would_hold(
    how: dict[str, Any], precision: str, small: dict[str, Path]
) -> None:
    held = lower(small[precision], GRAPH_FILE, T, **how).weights
    taken = taken_weights(Bundle.open(small[precision]))
    assert taken.keys() == held.keys()
    for name, weight in taken.items():
        assert np.array_equal(weight.read().reshape(-1).view(np.uint8), held[name]), name
        assert isinstance(weight.read(), np.memmap), "not read before it is copied"


def test_another_checkpoint_of_the_same_shape_fits_the_same_inputs(
    bundle: Path, tmp_path: Path
) -> None:
    """Its engine is another, of its own bundle: nobody mistakes one for the other."""
    base = Bundle.open(bundle)
    write_seeded(tmp_path / "checkpoint", base.config, seed=7)
    export_bundle(tmp_path / "checkpoint", tmp_path / "tuned", precision=DType.FP16)
    tuned = Bundle.open(tmp_path / "tuned")
    assert digest_of(taken_weights(tuned)) == digest_of(taken_weights(base))
    ids, starts, last = tokens(1, 9), np.zeros(1, np.int64), np.array([[8]])
    with opened(tuned.path, FakeDevice()) as session:
        found = session.step(ids, starts, last)[0, 0].copy()
    near(found, whole(tuned.path, ids)[0, -1], 5e-3)
    assert np.linalg.norm(found - whole(bundle, ids)[0, -1]) > 0.1 * np.linalg.norm(found)
    assert tuned.bundle_id != base.bundle_id


def test_an_engine_for_other_weights_is_refused_with_what_to_do(bundle: Path) -> None:
    device, record = FakeDevice(), replace(stripped(bundle), stripped="0" * 64)
    with pytest.raises(BuildError, match=r"it was built for others\. Build it again: .* --strip"):
        TensorRtSession(bundle, record, device=device, open_plan=lambda _: pytest.fail("opened"))
    assert not device.live and device.closed


def test_weights_count_as_memory_and_are_given_back(bundle: Path) -> None:
    weights = taken_weights(Bundle.open(bundle))
    with opened(bundle, FakeDevice()) as session:
        held, plain = session.memory, record_of(bundle)
    with TensorRtSession(
        bundle, plain, device=(device := FakeDevice()),
        open_plan=lambda _: plan_of(bundle, device, "native"),
    ) as session:  # fmt: skip
        beside = held.total - session.memory.total
    least = sum(weight.nbytes for weight in weights.values())
    assert beside == held.plans and least <= beside < least + 256 * len(weights)
    for fail_at in range(1, 14):
        device = FakeDevice(fail_at=fail_at)
        try:
            opened(bundle, device).close()
        except MachineError:
            assert device.calls["allocate"] == fail_at
        assert not device.live and device.closed


def test_a_build_needs_little_of_this_machine_and_the_gpu_as_much(bundle: Path) -> None:
    manifest = replace(Bundle.open(bundle).manifest, precision=DType.BF16)
    plans = [
        engine_budget(manifest, target_named("l4"), num_plans=2, strip=strip)
        for strip in (False, True)
    ]
    one = engine_budget(manifest, target_named("l4"), num_plans=1)
    assert [plan.weight_bytes // manifest.weight_bytes for plan in plans] == [2, 1]
    assert plans[1].used_bytes == one.used_bytes and plans[1].fits == one.fits


def test_build_says_where_the_weights_are(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = dict.fromkeys(PROFILES, 1)
    (plan,) = record_of(bundle).plans
    plans = (replace(plan, launches_per_layer=numbers, scratch_bytes=numbers),)
    plain, taking = (replace(one, plans=plans) for one in (record_of(bundle), stripped(bundle)))
    found = plain, False
    monkeypatch.setattr("nemo_trt.engines.trt.build.build_engine", lambda *_, **__: found)
    assert run(["build", str(bundle), "--gpu", "l4"]) == 0
    assert "1.00 GB in it" in capsys.readouterr().out
    found = taking, False
    assert run(["build", str(bundle), "--gpu", "l4", "--strip"]) == 0
    assert "1.00 GB in the bundle" in capsys.readouterr().out
