"""Every example runs as its first line says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "embed_runner.py",
        "step_by_step.py",
        "validate_in_ci.sh",
    }


def test_the_runner_embeds_in_ten_lines(sample_bundle: Any, tmp_path: Path) -> None:
    example = EXAMPLES / "embed_runner.py"
    assert len([line for line in example.read_text().splitlines() if line][1:]) <= 10
    assert "Paris" in run([sys.executable, str(example), str(sample_bundle.bundle)], tmp_path)


def test_rows_step_by_step(sample_bundle: Any, tmp_path: Path) -> None:
    example = EXAMPLES / "step_by_step.py"
    lines = run([sys.executable, str(example), str(sample_bundle.bundle)], tmp_path).splitlines()
    assert lines[0].startswith("The sun rises in the ") and len(lines[0].split()) > 6
    assert lines[-1] == "Two plus two is"


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_validation_as_a_ci_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [str(EXAMPLES / "validate_in_ci.sh"), str(tiny_checkpoint), "bundle"]
    assert "PASS" in run(command, tmp_path)
    assert json.loads((tmp_path / "validation-report.json").read_text())["verdict"] == "pass"
