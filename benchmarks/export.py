"""Export at Mistral-NeMo's full shape: time, peak RSS, and the bytes that were read and written.

    python benchmarks/export.py [--layers 40] [--weights in-place|copy] [--precision bf16|fp8]
                                [--real] [--folder DIR] [--json FILE]

The checkpoint's files are sparse by default: true headers of the true size over holes, 24.5 GB
that take no disk. `--real` writes seeded weights (24.5 GB of disk; twice that with
`--weights copy`), and a copy is set beside the disk's own: the same files copied by `cp`. FP8
takes its scales as given, as `nemo-trt export --scales` does; it reads what `cp` reads and writes
55 % of it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from made_up_scales import write_scales

from nemo_trt.export.convert.huggingface import hf_config
from nemo_trt.export.samples import SHAPES, write_seeded
from nemo_trt.precision import DType
from nemo_trt.safetensors import encode_header

CHILD = """
import json, resource, sys, time
from pathlib import Path

def calls():
    lines = (line.split(": ") for line in open("/proc/self/io"))
    return {key: int(value) for key, value in lines}

start, before = time.perf_counter(), calls()
from nemo_trt.export.bundle import export_bundle
from nemo_trt.manifest import Manifest
from nemo_trt.precision import DType
imported, loaded = time.perf_counter() - start, calls()
quantization = Manifest.from_json(open(sys.argv[4]).read()).quantization if sys.argv[4:] else None
precision = DType.FP8 if quantization else None
export_bundle(
    Path(sys.argv[1]), Path(sys.argv[2]),
    weights=sys.argv[3], precision=precision, quantization=quantization,
)
after = calls()
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "of which imports": imported,
    "peak RSS MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    "MB read after imports": (after["rchar"] - loaded["rchar"]) / 1e6,
    "MB written": (after["wchar"] - before["wchar"]) / 1e6,
}))
"""


def write_sparse(folder: Path, num_layers: int) -> None:
    """A checkpoint of Nemo's shape, in one file whose weights are a hole."""
    folder.mkdir(parents=True)
    shape = replace(SHAPES["nemo-12b"], num_layers=num_layers)
    (folder / "config.json").write_text(json.dumps(hf_config(shape)))
    layout = ((name, DType.BF16, dims) for name, dims in shape.tensors())
    header, num_bytes = encode_header(layout)
    path = folder / "model.safetensors"
    path.write_bytes(header)
    os.truncate(path, len(header) + num_bytes)


def rest(folder: Path) -> None:
    """Nothing waits to be written, and the weight files lie on the disk alone."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_seconds(source: Path, target: Path) -> float:
    """How long the disk's own copy of the weight files takes."""
    rest(source)
    target.mkdir()
    start = time.perf_counter()
    subprocess.run(
        ["cp", "--reflink=auto", *map(str, source.glob("*.safetensors")), str(target)], check=True
    )
    elapsed = time.perf_counter() - start
    shutil.rmtree(target)
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--weights", choices=("in-place", "copy"), default="in-place")
    parser.add_argument("--precision", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--real", action="store_true", help="write real seeded weights first")
    parser.add_argument("--folder", type=Path, help="where to work, by default a temporary folder")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    fp8 = arguments.precision == "fp8"
    if fp8 and arguments.weights != "copy":
        parser.error("--precision fp8 writes weights: it needs --weights copy")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        checkpoint = Path(name) / "checkpoint"
        if arguments.real:
            write_seeded(checkpoint, SHAPES["nemo-12b"], num_layers=arguments.layers)
        else:
            write_sparse(checkpoint, arguments.layers)
        bundle = checkpoint if arguments.weights == "in-place" else Path(name) / "bundle"
        compare = arguments.weights == "copy" and arguments.real
        copies = [copy_seconds(checkpoint, Path(name) / "copy")] if compare else []
        rest(checkpoint)
        command = [sys.executable, "-c", CHILD, str(checkpoint), str(bundle), arguments.weights]
        if fp8:
            command.append(str(Path(name) / "scales.json"))
            write_scales(
                Path(command[-1]), replace(SHAPES["nemo-12b"], num_layers=arguments.layers)
            )
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        figures = {"layers": arguments.layers, "weights": arguments.weights, "real": arguments.real}
        figures |= {"precision": arguments.precision}
        figures |= json.loads(output.splitlines()[-1])
        if compare:
            moved = sum(path.stat().st_size for path in bundle.rglob("*.safetensors"))
            copied = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
            shutil.rmtree(bundle)
            copies.append(copy_seconds(checkpoint, Path(name) / "copy"))
            figures |= {"cp before, seconds": copies[0], "cp after, seconds": copies[1]}
            rate = (copied + moved) / figures["seconds"]
            figures["rate over cp's mean, bytes read and written"] = rate / (
                2 * copied / (sum(copies) / 2)
            )
        for key, value in figures.items():
            print(f"{key:44} {value:.2f}" if isinstance(value, float) else f"{key:44} {value}")
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
