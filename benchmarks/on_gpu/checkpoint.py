"""The seeded checkpoint of the full shape is written, and exported in place."""

import resource
import time
from typing import Any

from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.samples import write_seeded
from nemo_trt.precision import DType
from on_gpu.scale import Work


def run(work: Work) -> dict[str, Any]:
    """Write (24.5 GB at full size), export, and say how long and how much."""
    start = time.perf_counter()
    if not (work.checkpoint / "config.json").exists():
        write_seeded(work.checkpoint, work.scale.config)
    written = time.perf_counter()
    export_bundle(work.checkpoint, work.checkpoint, precision=DType.BF16, weights="in-place")
    exported = time.perf_counter()
    size = sum(file.stat().st_size for file in work.checkpoint.rglob("*.safetensors"))
    return {
        "layers": work.scale.config.num_layers,
        "weight_bytes": size,
        "write_s": written - start,
        "export_s": exported - written,
        "graph_bytes": (work.checkpoint / "model.onnx").stat().st_size,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def table(found: dict[str, Any]) -> str:
    """One row."""
    return (
        "| layers | weights GB | written s | export in place s | graph MB | peak RSS GB |\n"
        "|---:|---:|---:|---:|---:|---:|\n"
        f"| {found['layers']} | {found['weight_bytes'] / 1e9:.2f} | {found['write_s']:.1f} "
        f"| {found['export_s']:.1f} | {found['graph_bytes'] / 1e6:.2f} "
        f"| {found['peak_rss_bytes'] / 1e9:.2f} |"
    )
