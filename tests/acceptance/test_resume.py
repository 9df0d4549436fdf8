"""What an outcome depends on, whether it is still there, and a run that is stopped."""

import importlib.util
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_trt.acceptance import AcceptanceOptions, accept
from nemo_trt.acceptance.identity import checkpoint_digest, code_digest
from nemo_trt.acceptance.step import Step
from nemo_trt.acceptance.step_record import Record
from nemo_trt.acceptance.steps import steps_of
from nemo_trt.acceptance.verdict import Line
from nemo_trt.errors import StateError
from nemo_trt.precision import DType
from nemo_trt.progress import Silent

from .running import Acceptance

pytestmark = pytest.mark.e2e
ROOMS = {
    f"nemo_trt.{room}" for room in ("engines", "export", "passes", "stages", "validate", "serve")
}


def options(again: Acceptance) -> AcceptanceOptions:
    """Those of `running.ASKED`."""
    return AcceptanceOptions(
        checkpoint=again.checkpoint,
        folder=again.folder,
        gpu="l40s",
        max_seq_len=512,
        max_batch=2,
        validate_seq_len=128,
        prefill=(16,),
        decode=(16,),
        decode_steps=4,
        smoke="none",
    )


def test_another_byte_file_or_name_makes_another_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy, ignore=shutil.ignore_patterns("bundle*"))
    first = checkpoint_digest(copy)
    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock").touch()
    assert checkpoint_digest(copy) == first
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    second = checkpoint_digest(copy)
    (copy / "added.json").write_text("{}")
    third = checkpoint_digest(copy)
    (copy / "added.json").rename(copy / "renamed.json")
    assert len({first, second, third, checkpoint_digest(copy)}) == 4
    weights.write_bytes(b"no safetensors")  # the export will say so
    assert checkpoint_digest(copy)


def test_a_large_file_of_another_format_is_known_by_samples(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with file.open("wb") as opened:
        opened.truncate(40 * 2**20)
    first = checkpoint_digest(file)
    with file.open("r+b") as opened:
        opened.seek(20 * 2**20)
        opened.write(b"x")
    assert checkpoint_digest(file) != first


def test_code_is_digested_room_by_room() -> None:
    rooms = ("nemo_trt", "nemo_trt.export", "nemo_trt.engines", "nemo_trt.acceptance.work")
    assert len({code_digest(room) for room in rooms}) == 4
    with pytest.raises(ModuleNotFoundError):
        code_digest("nemo_trt.attic")


def test_a_step_is_done_again_when_the_code_that_it_runs_changes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Every room that its module imports is among its inputs."""
    asked = AcceptanceOptions(checkpoint=tiny_checkpoint, folder=tmp_path, gpu="l40s")
    kept = [step for step in steps_of(asked) if step.keep]
    assert {step.stage for step in kept} >= {"plan", "export", "build", "validate", "bench"}
    for step in kept:
        module = importlib.util.find_spec(f"nemo_trt.acceptance.work.{step.stage}")
        assert module is not None and module.origin is not None
        text = Path(module.origin).read_text(encoding="utf-8")
        rooms = set(re.findall(r"(?:from|import) (nemo_trt\.[a-z]+)", text)) & ROOMS
        assert {f"code of {room}" for room in rooms} <= step.inputs.keys(), step.name


def test_what_a_step_made_must_still_be_there(again: Acceptance) -> None:
    steps = {step.name: step for step in steps_of(options(again))}
    records = {
        name: Record.from_json(again.record(name).read_text())
        for name in ("export-bf16", "build-bf16", "validate-bf16-onnxruntime")
    }
    assert not any(steps[name].gone(record) for name, record in records.items())
    (again.folder / "report" / "validation" / "validate-bf16-onnxruntime.json").unlink()
    assert "is gone" in steps["validate-bf16-onnxruntime"].gone(
        records["validate-bf16-onnxruntime"]
    )
    (plan,) = (again.folder / "bundle-bf16" / "engines" / "l40s-bf16").glob("*.plan")
    plan.unlink()
    assert "missing or cut short" in steps["build-bf16"].gone(records["build-bf16"])
    other = replace(records["export-bf16"], product={"bundle_id": "0"})
    assert "another bundle" in steps["export-bf16"].gone(other)
    (again.folder / "bundle-bf16" / "model.onnx").write_bytes(b"")
    assert "export again" in steps["export-bf16"].gone(records["export-bf16"]).lower()


def test_precisions_have_steps_of_their_own_and_stages_stay_together(again: Acceptance) -> None:
    both = replace(options(again), precisions=(DType.BF16, DType.FP8))
    names = [step.name for step in steps_of(both)]
    assert names[:5] == ["doctor", "plan-bf16", "plan-fp8", "export-bf16", "export-fp8"]
    assert names[-1] == "plots" and len(names) == len(set(names)) == 20


class Stopping(Silent):
    """A watcher that is stopped in the middle of a stage, as by Ctrl-C."""

    def __init__(self, stage: str) -> None:
        self.stage, self.now = stage, ""

    def begin(self, step: Step, why: str) -> None:
        self.now = step.stage

    def end(self, line: Line) -> None:
        self.now = ""

    def phase(self, name: str, total: int = 0, unit: str = "steps") -> None:
        if self.now == self.stage:
            raise KeyboardInterrupt


def children() -> str:
    """Processes that this thread has started."""
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


def test_a_stopped_run_says_so_and_leaves_no_process_behind(again: Acceptance) -> None:
    before = children()
    with pytest.raises(KeyboardInterrupt):
        accept(options(again), Stopping("bench"), again=["bench"])
    report = (again.folder / "report" / "report.md").read_text()
    assert "**UNFINISHED.**" in report and "**PASS" not in report
    assert children() == before


def test_a_record_of_another_step_or_version_is_refused() -> None:
    record = Record(step="a", stage="plan", subject="a", verdict="pass")
    text = record.to_json()
    assert Record.from_json(text) == record
    for damaged in (text.replace('"a"', '"b"'), text[:-20], "[]", "", '{"sha256": 1}'):
        with pytest.raises(StateError, match="damaged"):
            Record.from_json(damaged)
