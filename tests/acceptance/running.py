"""Runs `nemo-trt acceptance` as a user does, on a machine whose GPUs the test chooses."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Acceptance:
    """Runs it again on a copy."""

    checkpoint: Path
    folder: Path
    programs: Path

    def run(self, *more: str, gpu: str = "l40s", programs: Path | None = None) -> Ran:
        ended = subprocess.run(
            command(self.checkpoint, self.folder, *more, gpu=gpu),
            env=environment(programs or self.programs),
            capture_output=True,
            text=True,
        )
        return Ran(self.folder, ended.returncode, ended.stdout, ended.stderr)

    def record(self, step: str) -> Path:
        return self.folder / "report" / "steps" / f"{step}.json"
