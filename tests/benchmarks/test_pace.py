"""benchmarks/pace.py from end to end, tiny: in process and over HTTP, by time and by GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

PACE = Path(__file__).resolve().parents[2] / "benchmarks" / "pace.py"
KEYS = {"tokens_per_s", "share_of_ideal", "cpu_us_per_token", "ttft_p50_ms", "between_p99_ms"}


def run(bundle: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    file = folder / "pace.json"
    command = [sys.executable, str(PACE), "--bundle", str(bundle), "--json", str(file)]
    done = subprocess.run(
        [*command, "--seconds", "0.5", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("| streams |")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("over", ["", "--http", "--http --front-ends 1"])
def test_a_run_reports_its_figures(tekken_bundle: Path, tmp_path: Path, over: str) -> None:
    found = run(tekken_bundle, tmp_path, "--streams", "2", "--step-ms", "40", *over.split())
    assert found.keys() >= KEYS and found["streams"] == 2
    assert found["over"] == ("HTTP" if over else "AsyncEngine")
    if over:  # the kernel counts in ticks: one of several processes may have taken none
        assert found["front_ends"] == over.count("front-ends")
        assert 0 <= found["engine_us_per_token"] <= found["cpu_us_per_token"]
    if "front-ends" not in over:
        assert found["cpu_us_per_token"] > 0
    # The session takes its time: however fast the host, no more than its steps allow, and one
    # step's tokens that the window's edge cut off.
    assert 0 < found["tokens_per_s"] <= 2 / 0.040 + 2 / 0.5
    assert found["share_of_ideal"] == pytest.approx(found["tokens_per_s"] * 0.040 / 2)


def test_a_gpus_step_reads_the_weights_and_what_the_rows_hold(
    tekken_bundle: Path, tmp_path: Path
) -> None:
    found = run(tekken_bundle, tmp_path, "--streams", "1", "2", "--target", "h100")
    one, two = found["runs"]
    # 11.58 G parameters, of them 0.67 G of a BF16 head, over 3,350 GB/s, and a few cached tokens.
    assert 3.6 < one["step_ms"] < two["step_ms"] < 3.8
