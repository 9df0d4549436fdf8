"""A step's process: what it prints, raises, or dies of, is an outcome with a reason."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Literal

import pytest

from nemo_trt.acceptance.process import run_stage
from nemo_trt.progress import Silent

pytestmark = pytest.mark.e2e


class Killer:
    """A `Progress` that ends this process's newest child at its first phase."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def phase(self, name: str, total: int = 0, unit: Literal["steps", "bytes"] = "steps") -> None:
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
        os.kill(int(children.split()[-1]), self.number)

    def advance(self, amount: int = 1) -> None:
        raise AssertionError("it is dead")


PLAN = {"precision": "bf16", "gpu": "l4", "max_seq_len": None, "max_batch": 1}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_has_failed_and_its_signal_is_named(
    number: signal.Signals, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    asked = {"checkpoint": str(tiny_checkpoint), **PLAN}
    ended = run_stage("plan", asked, tmp_path / "log", Killer(number))
    assert ended.verdict == "fail" and number.name in ended.reason
    assert ("memory runs out" in ended.reason) == (number is signal.SIGKILL)


def test_a_process_that_dies_in_the_middle_of_a_line_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker"
    worker.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        'os.write(int(sys.argv[4]), b\'{"phase": "exp\')\nos.kill(os.getpid(), 9)\n'
    )
    worker.chmod(0o755)
    monkeypatch.setattr("nemo_trt.child.sys.executable", str(worker))
    ended = run_stage("plan", {}, tmp_path / "log", Silent())
    assert ended.verdict == "fail" and "SIGKILL" in ended.reason


def test_an_unexpected_error_has_failed_with_its_name_and_its_traceback_is_kept(
    tmp_path: Path,
) -> None:
    ended = run_stage("plan", {"nonsense": 1}, tmp_path / "log", Silent())
    assert ended.verdict == "fail" and ended.reason.startswith("TypeError: ")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_an_unknown_stage_ends_with_its_exit_code_and_last_words(tmp_path: Path) -> None:
    ended = run_stage("dance", {}, tmp_path / "log", Silent())
    assert ended.verdict == "fail" and "exit code 1" in ended.reason
    assert "no stage dance" in ended.reason


def test_a_process_has_a_peak_of_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    held = bytearray(400_000_000)  # ours, not that of the step
    ended = run_stage(
        "plan", {"checkpoint": str(tiny_checkpoint), **PLAN}, tmp_path / "log", Silent()
    )
    assert ended.verdict == "pass" and 10e6 < ended.peak_rss_bytes < len(held)


def test_a_record_survives_numbers_that_json_lacks() -> None:
    from nemo_trt.acceptance.worker import plain

    assert plain({"a": [float("inf"), 1.5], 3: float("nan")}) == {"a": ["inf", 1.5], "3": "nan"}
