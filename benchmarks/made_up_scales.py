"""Scales that no calibration measured, for figures that their values do not change."""

from pathlib import Path

from nemo_trt.config import ModelConfig
from nemo_trt.manifest import Manifest
from nemo_trt.precision import DType
from nemo_trt.quantization import LM_HEAD, Activation, Quantization, groups


def write_scales(path: Path, config: ModelConfig) -> None:
    """A manifest with scales for every product but the head's."""
    every = {group: weights for group, weights in groups(config) if group != LM_HEAD}
    quantization = Quantization(
        weight_scales="per-tensor",
        method="amax",
        calibration={"name": "made up", "sha256": "", "samples": 0, "tokens": 0},
        activations={g: Activation(amax=100.0, clip=100.0, shift=0.0, kl=0.0) for g in every},
        weight_amax={name: 8.0 for weights in every.values() for name in weights},
        kl=0.0,
        max_kl=1.0,
        kept={},
    )
    manifest = Manifest(
        config=config,
        precision=DType.FP8,
        stored_dtypes=(DType.FP8,),
        weights_mode="copy",
        graph_sha256="",
        weights=(),
        tokenizer_files=(),
        source={},
        tools={},
        quantization=quantization,
    )
    path.write_text(manifest.to_json(), encoding="utf-8")
