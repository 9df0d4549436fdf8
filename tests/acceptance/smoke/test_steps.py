"""The smoke's place among the steps: first, alone, or not at all; what its failure prevents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.acceptance import AcceptanceOptions, accept, chain, smoke_steps
from nemo_trt.acceptance.process import Ended
from nemo_trt.acceptance.step import Step
from nemo_trt.acceptance.steps import steps_of
from nemo_trt.acceptance.verdict import Line
from nemo_trt.errors import RequestError
from nemo_trt.precision import DType
from nemo_trt.progress import Silent

pytestmark = pytest.mark.unit

SMOKE = ["smoke-bf16-bundle", "smoke-bf16-engine", "smoke-bf16-session"]


class Watching(Silent):
    """Keeps the lines and pages that it is told."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.pages: list[tuple[str, list[str]]] = []

    def begin(self, step: Step, why: str) -> None:
        pass

    def end(self, line: Line) -> None:
        self.lines[line.record.step] = line

    def smoke(self, page: str) -> None:
        self.pages.append((page, list(self.lines)))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "checkpoint" / "config.json"
    file.parent.mkdir()
    file.write_text("{}")
    return file.parent


def options(checkpoint: Path, **changed: Any) -> AcceptanceOptions:
    folder = checkpoint.parent / "out"
    return AcceptanceOptions(checkpoint=checkpoint, folder=folder, gpu="h100", **changed)


def ends(monkeypatch: pytest.MonkeyPatch, **parts: str) -> list[str]:
    """Steps end without a process: a part of the smoke, or a stage, with the verdict given."""
    ran: list[str] = []

    def run_stage(stage: str, arguments: Mapping[str, Any], log: Path, progress: Any) -> Ended:
        ran.append(log.stem)
        verdict: Any = parts.get(arguments.get("part", stage), "pass")
        return Ended(verdict=verdict, reason="" if verdict == "pass" else "because")

    monkeypatch.setattr(chain, "run_stage", run_stage)
    monkeypatch.setattr(chain, "code_words", lambda: "0.1.0")
    for made in ("bundle_gone", "engine_gone"):
        monkeypatch.setattr(smoke_steps, made, lambda *_: "")
    monkeypatch.setattr(
        chain, "write_report", lambda asked, _: (asked.report_folder / "report.md").touch()
    )
    return ran


def test_the_smoke_comes_before_the_checkpoint_is_touched(checkpoint: Path) -> None:
    both = (DType.BF16, DType.FP8)
    names = [step.name for step in steps_of(options(checkpoint, precisions=both))]
    assert names[:4] == ["doctor", *SMOKE]
    assert names[4].startswith("smoke-fp8") and names[7:9] == ["plan-bf16", "plan-fp8"]
    alone = [step.name for step in steps_of(options(checkpoint, smoke="only"))]
    assert alone == ["doctor", *SMOKE]
    without = [step.name for step in steps_of(options(checkpoint, smoke="none"))]
    assert set(without) == {step.name for step in steps_of(options(checkpoint))} - set(SMOKE)
    with pytest.raises(RequestError, match="smoke must be one of"):
        options(checkpoint, smoke="last")


def test_a_smoke_alone_passes_by_itself_and_leaves_the_report_as_it_is(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = ends(monkeypatch)
    watching, asked = Watching(), options(checkpoint, smoke="only")
    assert accept(asked, watching).verdict == "pass" and ran == ["doctor", *SMOKE]
    report = {file.name for file in asked.report_folder.iterdir() if file.is_file()}
    assert report == {"smoke.md"}
    (shown,) = watching.pages
    assert shown == ((asked.report_folder / "smoke.md").read_text(), ["doctor", *SMOKE])
    assert "**PASS.**" in shown[0]
    ran.clear()
    assert accept(asked, Watching()).verdict == "pass" and ran == ["doctor"], "the rest is kept"
    ran.clear()
    accept(asked, Watching(), ["smoke"])
    assert ran == ["doctor", *SMOKE]


def test_a_smoke_that_cannot_run_here_is_incomplete_and_the_rest_goes_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = ends(monkeypatch, engine="skip")
    watching = Watching()
    assert accept(options(checkpoint, smoke="only"), watching).verdict == "incomplete"
    verdicts = {name: line.record.verdict for name, line in watching.lines.items()}
    assert [verdicts[name] for name in SMOKE] == ["pass", "skip", "skip"]
    ran.clear()
    accept(options(checkpoint), Watching())
    assert "build-bf16" in ran and SMOKE[0] not in ran


@pytest.mark.parametrize("part", ["bundle", "engine", "session"])
def test_after_a_smoke_that_failed_the_real_engine_is_not_built_but_the_bundle_is_made(
    part: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = ends(monkeypatch, **{part: "fail"})
    watching = Watching()
    assert accept(options(checkpoint), watching).verdict == "fail"
    assert "export-bf16" in ran and "validate-bf16-onnxruntime" in ran
    assert "build-bf16" not in ran and "validate-bf16-engine" not in ran
    record = watching.lines["build-bf16"].record
    assert record.verdict == "not run" and record.reason.startswith("smoke small ")
    assert record.reason.endswith(" failed")
    (page, _) = watching.pages[0]
    assert "**FAIL.**" in page and "because" in page
