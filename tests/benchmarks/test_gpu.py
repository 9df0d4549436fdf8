"""benchmarks/gpu.py from end to end, tiny, on a CPU: every stage, resumed, skipped, in tables."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
STAGES = [
    "machine", "checkpoint", "attention", "fp8", "speed-eager", "speed-compiled",
    "speed-ours", "full-size", "long-position", "calibration",
]  # fmt: skip


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, str(GPU), "--tiny", "--folder", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    run(folder, "--no-processes")
    return folder


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def test_every_stage_has_a_result(folder: Path) -> None:
    found = results(folder)
    assert list(found) == STAGES
    assert not [name for name, one in found.items() if "skipped" in one]


def test_our_session_is_as_near_as_the_reference_allows(folder: Path) -> None:
    every = results(folder)
    stages = [every["full-size"], every["long-position"]]
    assert [stage["failed"] for stage in stages] == [[], []]
    rows = [row for stage in stages for row in stage["cases"]]
    ours = {row["case"]: row for row in rows if row["who"] == "ours"}
    assert set(ours) == {"prefill", "decode", "ragged batch", "long position"}
    peer = [row for row in rows if row["who"] == "transformers bf16"]
    # In a tiny run ours computes in fp32, so it must be far nearer than BF16 is.
    assert max(row["max_relative_l2"] for row in ours.values()) < 1e-3
    assert min(row["max_relative_l2"] for row in peer) > 1e-3


def test_paged_attention_is_attention(folder: Path) -> None:
    found = results(folder)["attention"]
    rows = [*found["decode"], *found["prefill"], *found["pages"]]
    assert {one["cache"] for one in rows} == {"bf16", "fp8"}
    assert max(one["error"] for one in rows) < 5e-3
    assert min(one["bytes"] for one in [*found["decode"], found["ragged"]]) > 0


def test_fp8_products_are_their_simulation_but_for_bf16_rounding(folder: Path) -> None:
    products = results(folder)["fp8"]["products"]
    assert {(one["group"], one["rows"]) for one in products} == {
        (group, rows) for group in ("qkv", "o", "gate, up", "down") for rows in (1, 16)
    }
    for one in products:
        assert one["real_vs_exact"] < 4e-3  # half a BF16 step
        assert one["simulated_vs_real"] < 8e-3  # one of each
        assert 1e-2 < one["fp8_vs_bf16"] < 0.1


def test_the_tables_say_which_machine_and_that_it_was_tiny(folder: Path) -> None:
    text = (folder / "results.md").read_text(encoding="utf-8")
    for words in ("driver", "torch 2", "tiny run", "### Speed", "nemo-trt CUDA", "| down |"):
        assert words in text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 6
    assert all(len({line.count("|") for line in block if line}) == 1 for block in blocks)


def test_a_second_run_does_only_what_is_missing(folder: Path) -> None:
    (folder / "results" / "machine.json").unlink()
    before = results(folder)
    said = run(folder)
    assert said.count(" ...") == 1
    assert results(folder)["calibration"] == before["calibration"]


def test_time_that_is_over_stops_between_stages(folder: Path) -> None:
    kept = (folder / "results" / "machine.json").rename(folder / "kept.json")
    assert "time is over before machine" in run(folder, "--limit-s", "0", code=4)
    kept.rename(folder / "results" / "machine.json")


def test_a_stage_without_its_packages_is_skipped_with_its_reason(
    folder: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import gpu; from pathlib import Path\n"
        "from nemo_trt.errors import MachineError\n"
        "def fails(work): raise MachineError('no CUDA provider here')\n"
        "gpu.STAGES['machine'] = fails\n"
        "work = gpu.Work(Path(sys.argv[2]), gpu.TINY)\n"
        "results = work.folder / 'results'; results.mkdir()\n"
        "gpu.run_one('machine', work, results); gpu.write_summary(work, results)\n"
    )
    command = [sys.executable, "-c", script, str(GPU.parent), str(tmp_path)]
    subprocess.run(command, check=True)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "machine: skipped, no CUDA provider here" in text
