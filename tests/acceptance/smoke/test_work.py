"""The smoke's work: its last part on the stand-in, and a whole smoke where there is no GPU."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.acceptance.smoke import opened
from nemo_trt.acceptance.smoke.facts import OF_ENGINES
from nemo_trt.acceptance.work import smoke
from nemo_trt.acceptance.work.done import Done
from nemo_trt.acceptance.worker import plain
from nemo_trt.progress import Silent
from tests.acceptance.running import Acceptance
from tests.engines.trt.standin import FakeContext

from .lab import Lab, after_each_run, logits_of

pytestmark = pytest.mark.model


@pytest.fixture
def session(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Does the last part on the stand-in; its argument is what validation says."""
    (lab.folder / "bundle-fp16").symlink_to(lab.bundle)
    lab.bandwidth = 1e9
    monkeypatch.setattr(smoke, "require_engine_gpu", lambda bundle, engine: "NVIDIA L4")
    monkeypatch.setattr(opened, "opened", lambda bundle, name, bandwidth: lab.subject)

    def do(failure: str = "") -> Done:
        judged = Done(verdict="fail" if failure else "pass", reason=failure, facts={"cases": []})
        monkeypatch.setattr(smoke.validate, "run", lambda **asked: judged)
        return smoke.run(
            part="session", folder=str(lab.folder), precision="fp16", gpu="l4", copy="",
            progress=Silent(),
        )  # fmt: skip

    return do


def test_a_sound_engine_passes_and_every_fact_about_engines_is_probed(session: Any) -> None:
    done = session()
    assert (done.verdict, done.reason) == ("pass", "")
    assert [one["fact"] for one in done.facts["outcomes"]] == [fact.name for fact in OF_ENGINES]
    what = [one["what"] for one in done.facts["ran"]]
    assert what == ["open", "prefill", "decode", "probes of 15 facts about engines", "validate"]
    assert done.facts["ran"][1]["measured"].startswith("8 tokens in ")
    json.dumps(plain(asdict(done)), allow_nan=False)


def test_wrong_answers_and_a_failed_validation_fail_it(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter(range(10**6))

    def drift(context: FakeContext) -> None:
        logits_of(context)[...] *= 1 + next(runs)

    after_each_run(monkeypatch, drift)
    done = session("top1 must be at least 0.97")
    assert done.verdict == "fail"
    assert done.reason.startswith("F5: 7 of 7 repeated steps give other logits")
    assert done.reason.endswith("; top1 must be at least 0.97")


def test_a_refuted_fact_that_touches_no_answer_passes(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeContext, "capturable", lambda context, stream: False)
    done = session()
    found = {one["fact"]: one["found"] for one in done.facts["outcomes"]}
    assert found["F7"] == "refuted" and done.verdict == "pass"


@pytest.mark.e2e
def test_a_whole_smoke_without_a_gpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It builds with TensorRT-RTX, judges the bundle on the CPU, and says what could not run."""
    pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")
    programs = tmp_path / "programs"
    programs.mkdir()
    ended = Acceptance(tiny_checkpoint, tmp_path / "out", programs).run("--smoke")
    assert ended.code == 3, ended.err
    assert "INCOMPLETE. Nothing failed" in ended.words and "could not run here" in ended.words
    assert [path.name for path in (tmp_path / "out").glob("bundle*")] == []
    page = (tmp_path / "out" / "report" / "smoke.md").read_text()
    assert "runs on an sm_89 GPU like l40s (here: none)" in page
    assert "| F1 |" in page and "sm_89: fused at 24,448 tokens a row, not at 24,449" in page
    assert "Not probed: F5 to F19, which need an engine on its GPU." in page
    assert "| small bf16 bundle | 11 cases pass |" in page
    assert "build --strip" in page
