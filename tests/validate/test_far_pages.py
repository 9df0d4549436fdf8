"""Every case of the validator over a pool of pages, at the model's whole context of 131,072."""

from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.ort_pages import PagedOrtSession
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.validate.report import Report
from nemo_trt.validate.sequences import make_sequences
from nemo_trt.validate.validator import validate

pytestmark = pytest.mark.model
CONTEXT, PAGE = 131_072, 64


def judged(tiny: Any) -> Report:
    with PagedOrtSession.open(
        tiny.bundle, max_batch=2, max_seq_len=CONTEXT, threads=1, page_tokens=PAGE
    ) as session:
        assert session.num_pages == 2 * CONTEXT // PAGE
        sequences = make_sequences(session, None, ())
        assert sequences.far[0].start > CONTEXT - 100
        checkpoint = open_checkpoint(tiny.checkpoint)
        return validate(session, checkpoint, sequences, bundle_id="", engine=session.describe())


def test_a_sound_pool_passes(tiny: Any) -> None:
    report = judged(tiny)
    assert report.verdict == "pass"
    assert "long position" in {case.name for case in report.cases}


def test_far_pages_that_are_taken_for_near_ones_fail(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = PagedOrtSession._held

    def repeated(self: PagedOrtSession, pool: Any, table: Any, stop: int) -> Any:
        half = CONTEXT // PAGE // 2
        return held(self, pool, np.concatenate([table[:half], table[: len(table[half:])]]), stop)

    monkeypatch.setattr(PagedOrtSession, "_held", repeated)
    report = judged(tiny)
    assert [case.name for case in report.cases if case.failures] == ["long position"]
