"""Which GPU, driver and versions, on which day; and what the GPU can do at most."""

import datetime
import importlib.metadata
import platform
from typing import Any

from nemo_trt.engines.machine import gpus
from on_gpu.clock import copy_bytes_per_s, matmul_flops
from on_gpu.scale import Work

PACKAGES = ("torch", "transformers", "onnxruntime-gpu", "onnxruntime", "nvidia-cudnn-cu13")


def run(work: Work) -> dict[str, Any]:
    """Look, and measure the two ceilings."""
    found = gpus()
    return {
        "gpu": found[0].name if found else "none: CPU",
        "driver": found[0].driver if found else "none",
        "memory": found[0].memory if found else "none",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "copy_bytes_per_s": copy_bytes_per_s(work.scale),
        "matmul_flops": matmul_flops(work.scale),
    }


def table(found: dict[str, Any]) -> str:
    """One paragraph."""
    versions = ", ".join(f"{name} {v}" for name, v in found["versions"].items() if v)
    return (
        f"{found['gpu']} ({found['memory']}), driver {found['driver']}, {found['date']}; Python "
        f"{found['python']}, {versions}. A large copy moves {found['copy_bytes_per_s'] / 1e9:.0f} "
        f"GB/s, read plus written; a large BF16 product does {found['matmul_flops'] / 1e12:.1f} "
        "Tflop/s. Shares below are of these."
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
