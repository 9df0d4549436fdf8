"""Which steps are done, kept, skipped or left out, with stages that do nothing."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.acceptance import AcceptanceOptions, accept, chain
from nemo_trt.acceptance.process import Ended
from nemo_trt.acceptance.step_record import Scalar, read_record, write_record
from nemo_trt.acceptance.steps import Step
from nemo_trt.acceptance.verdict import Line, Summary
from nemo_trt.errors import StateError
from nemo_trt.progress import Silent

from .stage_facts import FACTS

pytestmark = pytest.mark.unit


class Run(Silent):
    """An acceptance of a plan, an export, a build and a validation; `accept` does it once more."""

    def __init__(self, folder: Path) -> None:
        checkpoint = folder / "c"
        checkpoint.touch()
        self.options = AcceptanceOptions(checkpoint=checkpoint, folder=folder / "out", gpu="l4")
        self.steps = [
            Step(name="p", stage="plan", subject="P", arguments={}),
            Step(name="e", stage="export", subject="E", arguments={}, needs=("p",)),
            Step(name="b", stage="build", subject="B", arguments={}, needs=("e",)),
            Step(name="v", stage="validate", subject="V", arguments={}, needs=("e", "b")),
        ]
        self.ends: dict[str, Ended | BaseException] = {}
        self.asked: list[str] = []
        self.begun: dict[str, str] = {}
        self.ended: list[Line] = []

    def change(self, name: str, **fields: Any) -> None:
        self.steps = [replace(one, **fields) if one.name == name else one for one in self.steps]

    def stage(self, stage: str, _: Mapping[str, Any], log: Path, __: Any) -> Ended:
        self.asked.append(log.stem)
        passed = Ended(
            verdict="pass", product={f"id of {log.stem}": "1"}, facts=FACTS.get(stage, {})
        )
        ended = self.ends.get(log.stem, passed)
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def begin(self, step: Step, why: str) -> None:
        self.begun[step.name] = why

    def end(self, line: Line) -> None:
        self.ended.append(line)

    def accept(self, *again: str) -> Summary:
        self.asked, self.begun, self.ended = [], {}, []
        return accept(self.options, self, again)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(tmp_path)
    monkeypatch.setattr(chain, "steps_of", lambda _: made.steps)
    monkeypatch.setattr(chain, "run_stage", made.stage)
    monkeypatch.setattr(chain, "machine_words", lambda: "here")
    monkeypatch.setattr(chain, "code_words", lambda: "now")
    return made


def verdicts(summary: Summary) -> dict[str, str]:
    return {line.record.step: line.record.verdict for line in summary.lines}


def test_what_passed_is_kept_and_asked_for_is_done_again_with_all_behind_it(run: Run) -> None:
    assert run.accept().verdict == "pass" and run.asked == ["p", "e", "b", "v"]
    assert run.begun == dict.fromkeys(("p", "e", "b", "v"), "")
    summary = run.accept()
    assert run.asked == [] and all(line.kept for line in summary.lines)
    run.accept("validate", "build")
    assert run.begun == dict.fromkeys(("b", "v"), "asked for with --again")


def test_a_failure_leaves_out_what_needs_it_and_a_skip_skips_it(run: Run) -> None:
    run.ends["b"] = Ended(verdict="fail", reason="broken")
    summary = run.accept()
    assert verdicts(summary) == {"p": "pass", "e": "pass", "b": "fail", "v": "not run"}
    assert summary.lines[-1].record.reason == "build B failed" and summary.verdict == "fail"
    run.ends["b"] = Ended(verdict="skip", reason="no GPU")
    summary = run.accept()
    assert run.begun == {"b": "the last time, it failed"}
    assert verdicts(summary)["v"] == "skip" and summary.verdict == "incomplete"
    assert summary.lines[-1].record.reason == "build B was skipped"


def test_inputs_are_those_of_the_step_and_what_the_needed_ones_made(run: Run) -> None:
    run.accept()
    run.change("e", inputs={"samples": 4})
    run.ends["e"] = Ended(verdict="pass", product={"id of e": "2"})
    run.accept()
    assert run.begun == {
        "e": "samples was None, is 4",
        "b": "id of e was 1, is 2",
        "v": "id of e was 1, is 2",
    }
    inputs: dict[str, Scalar] = dict.fromkeys("klmno", 1)
    run.change("v", inputs=inputs)
    run.accept()
    assert run.begun["v"].endswith("m was None, is 1 and 2 more")
    run.change("v", inputs={**inputs, "k": 2, "l": 2, "m": 2})
    run.accept()
    assert run.begun["v"].endswith("m was 1, is 2")


def test_what_is_gone_is_made_again(run: Run) -> None:
    run.accept()
    run.change("e", gone=lambda record: f"{record.product['id of e']} is gone.")
    run.accept()
    assert run.begun == {"e": "1 is gone."}


def test_an_outcome_of_another_machine_stands_where_it_cannot_be_had_here(run: Run) -> None:
    run.accept()
    run.change("v", environment={"gpu": "other"})
    run.ends["v"] = Ended(verdict="skip", reason="no GPU")
    summary = run.accept()
    (line,) = [one for one in summary.lines if one.record.step == "v"]
    assert (line.kept, line.record.verdict) == (True, "pass")
    assert line.why.endswith("kept; it cannot be repeated here: no GPU")
    run.ends["v"] = Ended(verdict="pass")
    (line,) = [one for one in run.accept().lines if one.record.step == "v"]
    assert not line.kept and line.record.environment == {"gpu": "other"}


def test_a_step_that_is_never_kept_is_done_each_time(run: Run) -> None:
    run.change("p", keep=False)
    run.accept()
    run.accept()
    assert run.asked == ["p"] and run.begun == {"p": ""}


def test_a_run_that_is_stopped_has_a_report_of_what_was_done(run: Run) -> None:
    run.ends["b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run.accept()
    report = (run.options.report_folder / "report.md").read_text()
    assert "**UNFINISHED.**" in report and "| export | E | pass |" in report
    del run.ends["b"]
    assert run.accept().verdict == "pass" and run.asked == ["b", "v"]


def test_the_record_of_another_step_is_no_record(run: Run) -> None:
    run.accept()
    folder = run.options.report_folder
    record = read_record(folder, "b")
    assert record is not None and (record.machine, record.code) == ("here", "now")
    write_record(folder, replace(record, step="v"))
    (folder / "steps" / "v.json").rename(folder / "steps" / "b.json")
    with pytest.raises(StateError, match="it is that of v"):
        read_record(folder, "b")
    run.accept()
    assert set(run.begun) == {"b", "v"}
