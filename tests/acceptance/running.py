"""Runs `nemo-trt acceptance` on a machine whose GPUs the test chooses."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.acceptance import chain
from nemo_trt.acceptance.process import Ended
from nemo_trt.acceptance.worker import outcome, plain
from nemo_trt.cli.main import run
from nemo_trt.progress import Progress

ASKED = ("--max-seq-len", "512", "--max-batch", "2", "--validate-seq-len", "128")
ASKED += ("--prefill", "16", "--decode", "16", "--decode-steps", "4", "--no-smoke")


@dataclass(frozen=True)
class Ran:
    """What a run printed, and the report that it left."""

    folder: Path
    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        return " ".join(self.out.split())

    @property
    def report(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / "report" / "report.json").read_text())
        return data

    @property
    def markdown(self) -> str:
        return (self.folder / "report" / "report.md").read_text()

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        return {step["step"]: step for step in self.report["steps"]}

    def done(self) -> set[str]:
        """The steps that this run did."""
        skipped = ("skip", "not run")
        return {
            name
            for name, step in self.steps.items()
            if not step["kept"] and step["verdict"] not in skipped
        }


def command(checkpoint: Path, folder: Path, *more: str, gpu: str = "l40s") -> list[str]:
    asked = ["acceptance", str(checkpoint), str(folder), "--gpu", gpu, *ASKED, *more]
    return [sys.executable, "-m", "nemo_trt.cli.main", *asked]


def environment(programs: Path) -> dict[str, str]:
    """Only these programs are found: without nvidia-smi, no GPU is."""
    return {**os.environ, "PATH": str(programs), "OMP_NUM_THREADS": "2"}


def stage_here(stage: str, arguments: Mapping[str, Any], log: Path, progress: Progress) -> Ended:
    """`run_stage` without a process: all steps of all runs import their libraries once."""
    log.parent.mkdir(parents=True, exist_ok=True)
    given = json.loads(json.dumps(arguments))
    with log.open("w") as output, redirect_stdout(output), redirect_stderr(output):
        done = outcome(stage, given, progress)
    return Ended(**json.loads(json.dumps(plain(done), allow_nan=False)))


@dataclass(frozen=True)
class Acceptance:
    """A folder to run it in."""

    checkpoint: Path
    folder: Path
    programs: Path

    def run(self, *more: str, gpu: str = "l40s", programs: Path | None = None) -> Ran:
        """Run it in this process."""
        asked = command(self.checkpoint, self.folder, *more, gpu=gpu)
        out, err = StringIO(), StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", str(programs or self.programs))
            patch.setattr(chain, "run_stage", stage_here)
            with redirect_stdout(out), redirect_stderr(err):
                code = run(asked[asked.index("acceptance") :])
        return Ran(self.folder, code, out.getvalue(), err.getvalue())

    def run_as_a_user_does(self, *more: str) -> Ran:
        """Run it in a process of its own, and each step in another."""
        ended = subprocess.run(
            command(self.checkpoint, self.folder, *more),
            env=environment(self.programs),
            capture_output=True,
            text=True,
        )
        return Ran(self.folder, ended.returncode, ended.stdout, ended.stderr)

    def record(self, step: str) -> Path:
        return self.folder / "report" / "steps" / f"{step}.json"
