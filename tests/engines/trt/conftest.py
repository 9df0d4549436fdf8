"""Bundles to compile: a small one, and two layers of Nemo's real dimensions."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.config import ModelConfig
from nemo_trt.precision import DType
from nemo_trt.quantization import LM_HEAD, Activation, Quantization, groups


def quantization_of(config: ModelConfig, *, amax: float = 100.0) -> Quantization:
    """Scales as a calibration would give them, all groups but the head in FP8."""
    every = {group: weights for group, weights in groups(config) if group != LM_HEAD}
    return Quantization(
        weight_scales="per-tensor",
        method="amax",
        calibration={"name": "made up", "sha256": "", "samples": 0, "tokens": 0},
        activations={g: Activation(amax=amax, clip=amax, shift=0.0, kl=0.0) for g in every},
        weight_amax={name: 4.0 for weights in every.values() for name in weights},
        kl=0.0,
        max_kl=1.0,
        kept={},
    )


def write_bundles(folder: Path, config: ModelConfig) -> dict[str, Path]:
    """A seeded checkpoint's bundles: BF16 in place, and FP8."""
    from nemo_trt.export.bundle import export_bundle
    from nemo_trt.export.samples import write_seeded

    checkpoint = folder / "checkpoint"
    write_seeded(checkpoint, config)
    export_bundle(checkpoint, checkpoint, precision=DType.BF16, weights="in-place")
    quantization = quantization_of(config)
    export_bundle(checkpoint, folder / "fp8", precision=DType.FP8, quantization=quantization)
    return {"bf16": checkpoint, "fp8": folder / "fp8"}


def small_config(num_layers: int) -> ModelConfig:
    """Layers whose attention TensorRT fuses, small enough to compile two in a second."""
    from nemo_trt.export.samples import SHAPES

    return replace(
        SHAPES["nemo-12b"],
        num_layers=num_layers,
        hidden_size=320,
        intermediate_size=896,
        num_heads=8,
        num_kv_heads=2,
        head_dim=128,
        vocab_size=512,
        max_position_embeddings=65536,
    )


@pytest.fixture(scope="session")
def small(cached: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small layers. A copy: tests build engines in it."""
    folder = tmp_path_factory.mktemp("small")
    made = cached("small", lambda folder: write_bundles(folder, small_config(2)))
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return {"bf16": folder / "checkpoint", "fp8": folder / "fp8"}
