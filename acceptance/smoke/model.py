"""The small model of a smoke: Nemo's attention as it is, every other width an eighth."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from nemo_trt.config import ModelConfig
from nemo_trt.export.samples import SHAPES, write_seeded

MAX_SEQ_LEN, MAX_BATCH, CHUNK = 16_384, 4, 512
"""Of its engine: 537 MB of keys and values in BF16, more than any L2 cache holds."""
_SAMPLES, _TOKENS = 8, 32


def shape() -> ModelConfig:
    """Two layers, 21 million parameters."""
    return replace(
        SHAPES["nemo-12b"],
        num_layers=2,
        hidden_size=640,
        intermediate_size=1792,
        vocab_size=2048,
        max_position_embeddings=MAX_SEQ_LEN,
    )


def write_model(checkpoint: Path) -> None:
    """Write the seeded checkpoint, over one that lies there."""
    write_seeded(checkpoint, shape(), force=True)


def write_samples(file: Path) -> None:
    """Write seeded tokens to calibrate FP8 on."""
    tokens = np.random.default_rng(0).integers(0, shape().vocab_size, (_SAMPLES, _TOKENS))
    file.write_text("".join(json.dumps({"tokens": line}) + "\n" for line in tokens.tolist()))
