"""The verdict: nothing passes that was not validated, and a failure is never outweighed."""

from typing import Any, Literal, cast

import pytest

from nemo_trt.acceptance.markdown import markdown
from nemo_trt.acceptance.step_record import Record, Verdict, differences
from nemo_trt.acceptance.verdict import Line, Summary

pytestmark = pytest.mark.unit


def summary(finished: bool = True, **verdicts: str) -> Summary:
    """Steps named stage or stage_optional."""
    lines = []
    for name, verdict in verdicts.items():
        stage, _, optional = name.partition("_")
        record = Record(step=name, stage=stage, subject=name, verdict=cast(Verdict, verdict))
        lines.append(Line(record=record, essential=not optional))
    return Summary(lines=tuple(lines), finished=finished)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({"export": "pass", "validate": "pass"}, "pass"),
        ({"export": "pass"}, "incomplete"),
        ({"export": "pass", "validate": "skip"}, "incomplete"),
        ({"export": "pass", "validate_cuda": "skip"}, "incomplete"),
        ({"validate": "pass", "validate_cuda": "skip"}, "pass"),
        ({"validate": "pass", "validate_cuda": "fail"}, "fail"),
        ({"validate": "pass", "build": "skip"}, "incomplete"),
        ({"validate": "pass", "bench": "not run"}, "incomplete"),
        ({"validate": "fail", "bench": "pass"}, "fail"),
        ({"validate": "pass", "finished": False}, "incomplete"),
        ({}, "incomplete"),
    ],
)
def test_the_verdict_of_steps(
    verdicts: dict[str, Any], expected: Literal["pass", "incomplete", "fail"]
) -> None:
    assert summary(**verdicts).verdict == expected


def test_what_changed_is_told_by_name_and_digests_are_not_spelled_out() -> None:
    old = {"checkpoint": "a" * 64, "torch": "2.1", "gone": 1, "same": None}
    new = {"checkpoint": "b" * 64, "torch": "2.2", "same": None, "new": None}
    assert differences(old, new) == [
        "checkpoint changed",
        "torch was 2.1, is 2.2",
        "new was None, is None",
        "gone was 1, is None",
    ]


def test_a_reason_with_bars_and_lines_stays_in_its_cell() -> None:
    step = {
        "step": "export-bf16", "stage": "export", "subject": "bf16", "verdict": "fail",
        "reason": "a | b\nc", "why": "", "started_at": "2026-01-01", "seconds": 1.0,
        "peak_rss_bytes": None, "facts": {}, "code": "1", "essential": True, "kept": False,
    }  # fmt: skip
    data = {
        "checkpoint": "x", "gpu": "l4", "finished": True, "verdict": "fail", "precisions": ["bf16"],
        "written_at": "now", "versions": {}, "machine": {}, "steps": [step],
    }  # fmt: skip
    (row,) = [line for line in markdown(data).splitlines() if line.startswith("| export")]
    assert row.endswith("| a \\| b c |") and row.count(" | ") == 5
