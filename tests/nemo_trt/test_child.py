"""A process of ours runs our modules, whatever lies in the working directory."""

import subprocess
from pathlib import Path

import pytest

from nemo_trt.child import module_command

pytestmark = pytest.mark.e2e


def test_what_lies_in_the_working_directory_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    for name in ("json/__init__.py", "json/tool.py", "argparse.py"):
        (tmp_path / name).write_text("raise SystemExit('this ran')\n")
    command = module_command("json.tool", "--compact")
    found = subprocess.run(
        command, cwd=tmp_path, input="[1, 2]", capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "[1,2]\n", "")
