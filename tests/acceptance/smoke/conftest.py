"""The stand-in engine that probes work on."""

from pathlib import Path
from typing import Any

import pytest

from nemo_trt.precision import DType

from .lab import Lab


@pytest.fixture
def lab(tiny_checkpoint: Path, cached: Any, tmp_path: Path) -> Lab:
    def make(folder: Path) -> None:
        from nemo_trt.export.bundle import export_bundle

        export_bundle(tiny_checkpoint, folder / "bundle", precision=DType.FP16)

    return Lab(cached("tiny-fp16", make) / "bundle", tmp_path)
