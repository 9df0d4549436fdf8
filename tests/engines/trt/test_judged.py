"""The validator over the TensorRT session's own chunks, on the stand-in: a fault there is seen."""

from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.precision import DType
from nemo_trt.validate.report import Report
from nemo_trt.validate.sequences import make_sequences
from nemo_trt.validate.validator import validate

from .fake_device import FakeDevice
from .standin import CHUNK, FakePlan, record_of

pytestmark = pytest.mark.model


def judge(checkpoint: Path, bundle: Path) -> Report:
    device = FakeDevice()
    session = TensorRtSession(
        bundle,
        record_of(bundle),
        device=device,
        open_plan=lambda _: FakePlan(bundle, device),
    )
    with session:
        sequences = make_sequences(session, None)
        assert len(sequences.long.tokens) > 3 * CHUNK
        return validate(
            session,
            open_checkpoint(checkpoint),
            sequences,
            bundle_id="",
            engine=session.describe(),
        )


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("judged") / "bundle-fp16"
    export_bundle(tiny_checkpoint, target, precision=DType.FP16)
    return target


def test_chunks_of_an_engine_are_judged(
    tiny_checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = judge(tiny_checkpoint, bundle)
    assert sound.verdict == "pass", [(one.name, one.failures) for one in sound.cases]

    true = TensorRtSession._run_prefill

    def early(self: TensorRtSession, piece: Any, start: int, *rest: Any) -> None:
        """The second chunk of a step stands a position early."""
        true(self, piece, start - (start == CHUNK), *rest)

    monkeypatch.setattr(TensorRtSession, "_run_prefill", early)
    failed = {case.name for case in judge(tiny_checkpoint, bundle).cases if case.failures}
    assert {"whole prefill", "long prefill"} <= failed
