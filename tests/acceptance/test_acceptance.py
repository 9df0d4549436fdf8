"""`nemo-trt acceptance` end to end, with what any machine has: in this process, but for one run."""

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.acceptance.step_record import Record
from nemo_trt.cli.main import run
from nemo_trt.engines.machine import gpus
from nemo_trt.validate.cases import CASES, GROWING_CACHE, LONG_POSITION

from .running import Acceptance, Ran, command, environment

pytestmark = pytest.mark.e2e

Output = pytest.CaptureFixture[str]
CPU = "validate-bf16-onnxruntime"
CPU_BENCH = "bench-bf16-onnxruntime"
ALWAYS = {"doctor", "plots"}  # done in each run
NO_GPU = "Engine l40s-bf16 runs on an sm_89 GPU like l40s (here: none)."
NO_CUDA = "This step runs on an sm_89 GPU like l40s (here: none)."


def test_all_that_this_machine_can_do_is_done_and_the_rest_has_its_reason(first: Ran) -> None:
    assert first.code == 3, first.err
    assert first.done() == {*ALWAYS, "plan-bf16", "export-bf16", "build-bf16", CPU, CPU_BENCH}
    skipped = {name: one for name, one in first.steps.items() if one["verdict"] == "skip"}
    assert {name: one["essential"] for name, one in skipped.items()} == {
        "validate-bf16-engine": True,
        "bench-bf16-engine": True,
        "validate-bf16-cuda": False,
        "bench-bf16-cuda": False,
    }
    assert NO_GPU in first.words and NO_GPU in first.markdown
    assert NO_CUDA in first.words and NO_CUDA in first.markdown
    assert "INCOMPLETE" in first.words and "**INCOMPLETE.**" in first.markdown
    assert "PASS" not in first.words and "**PASS" not in first.markdown
    versions = first.report["versions"]
    for package in ("onnxruntime", "torch", "transformers", "tensorrt-rtx"):
        assert versions[package] and f"| {package} | {versions[package]} |" in first.markdown
    assert versions["nemo-trt"] and versions["python"]
    facts = first.steps["export-bf16"]["facts"]
    assert facts["weight_bytes"] > 5e6
    judged = first.steps[CPU]["facts"]
    names = {case["name"] for case in judged["cases"]}
    assert names == {*CASES, GROWING_CACHE, LONG_POSITION}
    assert not any(case["failures"] for case in judged["cases"])
    decode = first.steps[CPU_BENCH]["facts"]["decode"]
    assert [one["rows"] for one in decode] == [1, 2, 4]
    for plot in first.steps["plots"]["facts"]["plots"]:
        drawn = (first.folder / "report" / plot["file"]).read_bytes()
        assert drawn.startswith(b"\x89PNG") and len(drawn) > 10_000
        assert f"]({plot['file']})" in first.markdown
    assert len(first.steps["plots"]["facts"]["plots"]) == 3
    assert all(one["floor_s"] > 0 and one["tokens_per_s"] > 0 for one in decode)


def test_the_report_is_what_the_steps_recorded(first: Ran) -> None:
    report = first.report
    assert report["finished"] and report["gpu"] == "l40s"
    files = {file.stem: file for file in (first.folder / "report" / "steps").iterdir()}
    assert list(files.keys() ^ first.steps.keys()) == []
    for name, step in first.steps.items():
        record = Record.from_json(files[name].read_text())
        for field in ("verdict", "reason", "facts", "product", "seconds", "peak_rss_bytes"):
            assert step[field] == getattr(record, field), (name, field)
    judged = first.folder / "report" / first.steps[CPU]["facts"]["every_position"]
    verdict = json.loads(judged.read_text())
    assert verdict["bundle_id"] == first.steps["export-bf16"]["product"]["bundle_id"]


def test_a_second_run_keeps_everything_and_says_so(again: Acceptance) -> None:
    kept = {again.record(step): again.record(step).read_bytes() for step in ("export-bf16", CPU)}
    second = again.run()
    assert second.code == 3
    assert second.done() == ALWAYS
    assert second.words.count("done before (") == 5
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert "done before (" in second.markdown


def test_a_changed_option_repeats_what_depends_on_it_and_says_which(again: Acceptance) -> None:
    second = again.run("--max-seq-len", "256", "--decode-steps", "5")
    assert second.done() == {*ALWAYS, "plan-bf16", "build-bf16", CPU_BENCH}
    assert "max_seq_len was 512, is 256" in second.words
    assert "decode_steps was 4, is 5" in second.words
    assert second.steps["build-bf16"]["facts"]["options"]["max_seq_len"] == 256


def test_a_damaged_or_altered_record_is_done_again_and_says_so(again: Acceptance) -> None:
    plan, bench = again.record("plan-bf16"), again.record(CPU_BENCH)
    plan.write_text(plan.read_text()[:100])
    bench.write_text(bench.read_text().replace('"load_s": 0', '"load_s": 9'))
    second = again.run()
    assert second.done() == {*ALWAYS, "plan-bf16", CPU_BENCH}
    assert second.words.count("again: A step's record is damaged") == 2
    Record.from_json(plan.read_text())


def test_a_failed_validation_fails_all_and_exits_with_one(
    again: Acceptance, tmp_path: Path
) -> None:
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.export.samples import write_seeded

    other = tmp_path / "other"
    write_seeded(other, open_checkpoint(again.checkpoint).config, seed=99)
    second = again.run("--reference", str(other))
    assert second.code == 1
    assert second.report["verdict"] == "fail" and "**FAIL.**" in second.markdown
    assert second.steps[CPU]["verdict"] == "fail" and "top1 must be" in second.markdown
    assert second.steps[CPU_BENCH]["verdict"] == "not run"
    assert "PASS" not in second.words
    assert second.steps["build-bf16"]["kept"]


def test_a_killed_run_is_gone_on_with(again: Acceptance) -> None:
    asked = command(again.checkpoint, again.folder, "--again", "validate")
    process = subprocess.Popen(
        asked,
        env=environment(again.programs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "reference" in line:  # in the middle of the validation
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    left = Ran(again.folder, process.returncode, "", "")
    assert not left.report["finished"] and left.report["verdict"] == "incomplete"
    assert "**UNFINISHED.**" in left.markdown and CPU not in left.steps
    second = again.run_as_a_user_does("--again", "validate")
    assert second.code == 3 and second.report["finished"], second.err
    assert second.done() == {*ALWAYS, CPU, CPU_BENCH}
    assert NO_GPU in second.words and "INCOMPLETE" in second.words
    assert second.steps[CPU]["peak_rss_bytes"] > 50e6


def test_without_a_compiler_for_the_gpu_the_bundle_is_judged_all_the_same(
    again: Acceptance,
) -> None:
    second = again.run(gpu="h100")
    assert second.code == 3
    assert second.steps["build-bf16"]["verdict"] == "skip"
    assert "an sm_90 GPU (here: none)" in second.words
    assert "build h100-bf16 was skipped" in second.markdown
    assert second.steps[CPU]["kept"] and second.steps[CPU]["verdict"] == "pass"


def test_what_another_machine_proved_stands_where_it_cannot_be_repeated(
    again: Acceptance,
) -> None:
    file = again.record("validate-bf16-engine")
    skipped = Record.from_json(file.read_text())
    environment = {**skipped.environment, "tensorrt": "11.1"}
    proved = replace(skipped, verdict="pass", reason="", environment=environment)
    file.write_text(proved.to_json())
    (again.folder / "report" / "validation" / "validate-bf16-engine.json").write_text(
        '{"cases": []}'
    )
    second = again.run()
    step = second.steps["validate-bf16-engine"]
    assert step["kept"] and step["verdict"] == "pass"
    assert "it cannot be repeated here: " + NO_GPU in second.words
    # The engine's speed was never measured, so the whole has not passed.
    assert second.steps["bench-bf16-engine"]["verdict"] == "skip" and second.code == 3


@pytest.mark.skipif(bool(gpus()), reason="pretends that there is a GPU")
def test_an_engine_that_breaks_beside_its_gpu_is_a_failure_and_no_skip(
    again: Acceptance, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    shown = "NVIDIA L40S, 8.9, 46068 MiB, 580.1"
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\necho '{shown}'\n")
    (programs / "nvidia-smi").chmod(0o755)
    second = again.run(programs=programs)
    assert second.steps["validate-bf16-engine"]["verdict"] == "fail"
    assert second.steps["bench-bf16-engine"]["verdict"] == "not run"
    assert second.code == 1 and second.report["machine"]["gpus"][0]["name"] == "NVIDIA L40S"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{}", "out", "--gpu", "h99"], "must be one of"),
        (["nowhere", "out", "--gpu", "l4"], "nowhere must exist"),
        (["{}", "{}/out", "--gpu", "l4"], "outside of the checkpoint"),
        (["{}", "{}/config.json", "--gpu", "l4"], "outside of the checkpoint"),
        (["{}", "out"], "--gpu"),
        (["{}", "out", "--gpu", "l4", "--precision", "fp4"], "fp4"),
        (["{}", "out", "--gpu", "l4", "--again", "doctors"], "doctors"),
    ],
)
def test_refusals(
    arguments: list[str], words: str, tiny_checkpoint: Path, capsys: Output, tmp_path: Path
) -> None:
    asked = [a.format(tiny_checkpoint).replace("out", f"{tmp_path}/out") for a in arguments]
    assert run(["acceptance", *asked]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_fails_before_anything_is_written(
    accepted_checkpoint: Path, tmp_path: Path, capsys: Output
) -> None:
    asked: list[Any] = ["acceptance", accepted_checkpoint, tmp_path / "out", "--gpu", "l4"]
    assert run([str(a) for a in [*asked, "--max-batch", "100000", "--no-smoke"]]) == 1
    assert "but it has 24 GB. Use" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report"]
    left = Ran(tmp_path / "out", 1, "", "")
    assert left.steps["export-bf16"]["verdict"] == "not run"
    assert left.steps["export-bf16"]["reason"] == "plan bf16 on l4 failed"
