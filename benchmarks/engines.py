"""Engines of Nemo's real dimensions, compiled without a GPU: kernels, bytes, scratch, build time.

    python benchmarks/engines.py [--layers 2] [--gpu NAME ...] [--folder DIR] [--json FILE]

Builds target x precision x context, each in a process of its own, and prints a Markdown table.
Needs TensorRT-RTX, twice the weights in memory and as much disk (two layers: 9 GB, 12 GB).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from made_up_scales import write_scales

from nemo_trt.engines.targets import target_named
from nemo_trt.export.samples import SHAPES, write_seeded
from nemo_trt.precision import DType

GPUS = ("a100", "l4", "rtx5090")
CONTEXTS = (4096, 16384)


def nemo_trt(*arguments: object) -> str:
    """Run the command line and return what it prints."""
    command = [sys.executable, "-m", "nemo_trt.cli.main", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def build(bundle: Path, gpu: str, context: int) -> dict[str, Any]:
    """Build an engine, and keep what its record says alone: plans are gigabytes."""
    shape = ("--max-seq-len", context, "--max-batch", 4)
    record: dict[str, Any] = json.loads(nemo_trt("build", bundle, "--gpu", gpu, *shape, "--json"))
    shutil.rmtree(bundle / "engines")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--gpu", action="append", help=f"by default {', '.join(GPUS)}")
    parser.add_argument("--folder", type=Path, help="where to work, by default a temporary folder")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        checkpoint, scales = Path(name) / "checkpoint", Path(name) / "scales.json"
        config = replace(SHAPES["nemo-12b"], num_layers=arguments.layers)
        write_seeded(checkpoint, config)
        write_scales(scales, config)
        fp8 = ("--precision", "fp8", "--scales", scales)
        nemo_trt("export", checkpoint, Path(name) / "fp8", *fp8)
        nemo_trt("export", checkpoint, checkpoint, "--weights", "in-place")
        print(
            "| GPU | sm | precision | kernels a layer, decode | prefill | weights GB | plan GB "
            "| plan / weights | scratch MB, T = 4k | T = 16k | build s | peak host GB |"
        )
        print("|---|---:|---|" + "---:|" * 9)
        for gpu in arguments.gpu or GPUS:
            target = target_named(gpu)
            for precision, bundle in (("bf16", checkpoint), ("fp8", Path(name) / "fp8")):
                if not target.supports(DType(precision)):
                    continue
                short, long = (build(bundle, gpu, context) for context in CONTEXTS)
                records += [short, long]
                (plan,) = short["plans"]
                weights = short["weight_bytes"]
                scratch = [
                    max(one["plans"][0]["scratch_bytes"].values()) / 1e6 for one in (short, long)
                ]
                print(
                    f"| {gpu} | {target.sm} | {precision} "
                    f"| {plan['launches_per_layer']['decode-1']:g} "
                    f"| {plan['launches_per_layer']['prefill']:g} "
                    f"| {weights / 1e9:.2f} | {plan['num_bytes'] / 1e9:.2f} "
                    f"| {plan['num_bytes'] / weights:.3f} "
                    f"| {scratch[0]:.0f} | {scratch[1]:.0f} "
                    f"| {short['build_s']:.0f} | {short['peak_host_bytes'] / 1e9:.1f} |",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
