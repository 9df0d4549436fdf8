"""The attacks of `benchmarks/attacks.py` on a real server, small: each is met as it should be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attacks.py"


def test_a_server_with_256_files_bears_every_attack(tekken_bundle: Path, tmp_path: Path) -> None:
    """Figures depend on the machine; answers do not, nor does whether others are served."""
    found = tmp_path / "attacks.json"
    command = [sys.executable, SCRIPT, tekken_bundle, "--seconds", "0.5", "--size", "0.1"]
    told = subprocess.run(
        [*map(str, command), "--json", str(found)], capture_output=True, text=True, check=False
    )
    assert found.is_file(), told.stdout + told.stderr
    rows = json.loads(found.read_text())["rows"]
    assert len(rows) == 22
    figures = {"delay", "memory"}
    wrong = {row["name"]: row["not_held"] for row in rows if set(row["not_held"]) - figures}
    assert not wrong, told.stdout
