"""Doctor: the version of everything, and what this machine can do."""

import os
import platform
from dataclasses import asdict

from nemo_trt.acceptance.identity import code_words, memory_bytes, package_versions, processor
from nemo_trt.engines.machine import examine, gpus
from nemo_trt.progress import Progress

from .done import Done

PACKAGES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "tokenizers",
    "mistral-common",
    "safetensors",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-python",
    "matplotlib",
)


def run(*, progress: Progress) -> Done:
    """Look at this machine; changes nothing."""
    progress.phase("look at this machine")
    present = gpus()
    machine = examine()
    return Done(
        facts={
            "versions": {
                "nemo-trt": code_words(),
                "python": platform.python_version(),
                **package_versions(PACKAGES),
                "driver": present[0].driver if present else None,
            },
            "machine": {
                "system": f"{platform.system()} {platform.release()} {platform.machine()}",
                "processor": processor(),
                "threads": os.cpu_count(),
                "memory_bytes": memory_bytes(),
                "gpus": [asdict(gpu) for gpu in present],
            },
            "can": {finding.name: finding.present for finding in machine.can},
        }
    )
