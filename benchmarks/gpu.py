"""Everything that needs a GPU, in one command: correctness at full size, speed, FP8, calibration.

    python benchmarks/gpu.py --folder DIR [--stage NAME ...] [--again] [--limit-s 540] [--tiny]

Each stage is a process of its own and leaves DIR/results/STAGE.json; a second call goes on where
the first stopped, so that it may be given minutes at a time. At the end, and after every stage,
DIR/results.json and DIR/results.md hold all that is there; the Markdown is for docs/performance.md.
A stage whose packages are missing (ONNX Runtime's CUDA provider, say) is skipped with its reason.
Full size: 30 GB of disk, 40 GB of host memory, 40 GB of GPU memory. `--tiny` runs the same
on a CPU in a minute and measures nothing: it proves the scripts.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from on_gpu import attention, calibration, checkpoint, fp8, full_size, machine, speed, tuning
from on_gpu.scale import FULL, TINY, Work

from nemo_trt import atomic
from nemo_trt.errors import MachineError

STAGES: dict[str, Callable[[Work], dict[str, Any]]] = {
    "machine": machine.run,
    "checkpoint": checkpoint.run,
    "attention": attention.run,
    "fp8": fp8.run,
    "speed-eager": speed.run_eager,
    "speed-compiled": speed.run_compiled,
    "speed-ours": speed.run_ours,
    "full-size": full_size.run_near,
    "long-position": full_size.run_far,
    "calibration": calibration.run,
    "tuning": tuning.run,
}
"""Name -> what it does, in order: the short ones first, each of use without those after it."""
ON_REQUEST = ("tuning",)
EXIT_TIME, EXIT_FAILED = 4, 1


def main() -> int:
    """Run what is not there yet; 0 when all stages ran or were skipped, 4 when time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stage", action="append", choices=STAGES)
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--limit-s", type=float, default=float("inf"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--no-processes",
        action="store_true",
        help="all stages in this process, one failure ends it",
    )
    parser.add_argument("--one", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = Work(arguments.folder.resolve(), TINY if arguments.tiny else FULL)
    results = work.folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        run_one(arguments.one, work, results)
        return 0
    end, failed = time.monotonic() + arguments.limit_s, []
    for name in arguments.stage or [name for name in STAGES if name not in ON_REQUEST]:
        file = results / f"{name}.json"
        if file.exists() and not arguments.again and "skipped" not in read(file):
            continue
        left = end - time.monotonic()
        if left <= 0:
            print(f"time is over before {name}; run this again")
            return EXIT_TIME
        print(f"{name} ...", flush=True)
        if arguments.no_processes:
            run_one(name, work, results)
            write_summary(work, results)
            continue
        command = [sys.executable, __file__, "--folder", str(work.folder), "--one", name]
        command += ["--tiny"] if arguments.tiny else []
        try:
            timeout = None if left == float("inf") else left
            code = subprocess.run(command, timeout=timeout, check=False).returncode
        except subprocess.TimeoutExpired:
            print(f"time is over within {name}; run this again")
            return EXIT_TIME
        if code:
            failed.append(name)
        write_summary(work, results)
    print((work.folder / "results.md").read_text(encoding="utf-8"))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return EXIT_FAILED if failed else 0


def run_one(name: str, work: Work, results: Path) -> None:
    """Run a stage here and leave its result, or why there is none."""
    start = time.perf_counter()
    try:
        found = STAGES[name](work)
    except (ImportError, MachineError) as error:
        found = {"skipped": f"{error}"}
    found["stage_s"] = time.perf_counter() - start
    atomic.write_text(results / f"{name}.json", json.dumps(found, indent=2) + "\n")


def read(file: Path) -> dict[str, Any]:
    """A stage's result."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def write_summary(work: Work, results: Path) -> None:
    """All results in one JSON and one Markdown file."""
    found = {name: read(results / f"{name}.json") for name in STAGES
             if (results / f"{name}.json").exists()}  # fmt: skip
    atomic.write_text(work.folder / "results.json", json.dumps(found, indent=2) + "\n")
    done = {name: one for name, one in found.items() if "skipped" not in one}
    parts = ["## On a GPU\n"]
    if work.scale.tiny:
        parts.append("A tiny run on a CPU: these figures mean nothing.\n")
    for name, heading, render in (
        ("machine", "", machine.table),
        ("checkpoint", "### The full checkpoint", checkpoint.table),
        ("full-size", "### Against transformers, at full depth", full_size.table),
        ("long-position", "### At the end of the context", full_size.table),
        ("attention", "### Paged attention", attention.table),
        ("fp8", "### FP8 on tensor cores", fp8.table),
        ("calibration", "### Calibration", calibration.table),
        ("tuning", "### Tilings of attention", tuning.table),
    ):
        if name in done:
            parts.append(
                f"{heading}\n\n{render(done[name])}\n" if heading else f"{render(done[name])}\n"
            )
    if "machine" in done and any(name.startswith("speed") for name in done):
        parts.append(f"### Speed\n\n{speed.table(done, done['machine'], work.scale)}\n")
    parts += [
        f"{name}: skipped, {one['skipped']}\n" for name, one in found.items() if "skipped" in one
    ]
    atomic.write_text(work.folder / "results.md", "\n".join(parts))


if __name__ == "__main__":
    sys.exit(main())
