"""Figures of the checkpoint formats: listing each, and writing a BF16 bundle from it.

    python benchmarks/formats.py --folder /big/disk            # Nemo's full shape, 75 GB at most
    python benchmarks/formats.py --folder /big/disk --layers 4

Every measured call is a process of its own, imports and all, on files that lie on the disk alone.
The rate is bytes read and written a second, over that of `cp` on the same bytes just before.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nemo_trt.export.samples import SHAPES, write_seeded

NAMES = {"mistral": "mistral", "nemo": "model.nemo"}
CHILD = """
import json, sys, time
start = time.perf_counter()
from nemo_trt.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write("\\n" + json.dumps({
    "code": code,
    "seconds": time.perf_counter() - start,
    "peak_gb": next(int(l.split()[1]) for l in open("/proc/self/status") if "VmHWM" in l) / 1e6,
}))
"""


def measured(*arguments: object) -> dict[str, float]:
    """Run a nemo-trt command; its seconds and peak memory."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    if figures["code"]:
        raise SystemExit(done.stderr)
    return figures


def rest(path: Path) -> None:
    """Nothing waits to be written, and the files are in no cache."""
    os.sync()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_seconds(source: Path, target: Path) -> float:
    """How long `cp` takes."""
    rest(source)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
    elapsed = time.perf_counter() - start
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return elapsed


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="where to work, by default a temporary folder")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source = Path(name) / "hf"
        write_seeded(source, SHAPES["nemo-12b"], num_layers=arguments.layers)
        for kind, file in NAMES.items():
            written = Path(name) / file
            rest(source)
            converted = measured("convert", source, written, "--to", kind)
            remove(source)  # two copies of the model at a time
            rest(written)
            listed = measured("inspect", written, "--tensors", "--json")
            copied = copy_seconds(written, Path(name) / "copy")
            rest(written)
            bundle = Path(name) / "bundle"
            exported = measured("export", written, bundle)
            remove(bundle)
            rows.append(
                {
                    "format": kind,
                    "list s": listed["seconds"],
                    "list GB": listed["peak_gb"],
                    "export s": exported["seconds"],
                    "export GB": exported["peak_gb"],
                    "cp s": copied,
                    "rate over cp's": copied / exported["seconds"],
                    "convert s": converted["seconds"],
                    "convert GB": converted["peak_gb"],
                }
            )
            source = written
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        print("| " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
