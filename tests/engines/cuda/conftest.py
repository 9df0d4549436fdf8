"""Bundles of three precisions of one small model of Nemo's ratios."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.precision import DType
from nemo_trt.quantization import LM_HEAD, Activation, Quantization, groups


@pytest.fixture(scope="session")
def bundles(cached: Any) -> dict[str, Path]:
    """Two layers, seeded: "fp32", "bf16" and "fp8", whose scales are made up."""
    folder = cached("cuda-bundles", write_bundles)
    return {name: folder / name for name in ("fp32", "bf16", "fp8")}


def write_bundles(folder: Path) -> None:
    from nemo_trt.export.bundle import export_bundle
    from nemo_trt.export.samples import SHAPES, write_seeded

    config = replace(SHAPES["nemo-tiny"], vocab_size=512)
    write_seeded(folder / "checkpoint", config, seed=1)
    every = {group: names for group, names in groups(config) if group != LM_HEAD}
    quantization = Quantization(
        weight_scales="per-channel",
        method="amax",
        calibration={"name": "made up", "sha256": "", "samples": 0, "tokens": 0},
        activations={g: Activation(amax=20.0, clip=20.0, shift=0.0, kl=0.0) for g in every},
        weight_amax={name: 4.0 for names in every.values() for name in names},
        kl=0.0,
        max_kl=1.0,
        kept={},
    )
    for precision in (DType.FP32, DType.BF16):
        export_bundle(folder / "checkpoint", folder / precision, precision=precision)
    export_bundle(
        folder / "checkpoint", folder / "fp8", precision=DType.FP8, quantization=quantization
    )
