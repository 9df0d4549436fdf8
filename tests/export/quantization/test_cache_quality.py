"""What an FP8 cache costs the sample model, with the scales and layers that calibration chose."""

import math
from pathlib import Path

import pytest
import torch

from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.manifest import read_manifest
from nemo_trt.validate.texts import HELD_OUT

from .test_cache import answers, divergence, opened

pytestmark = pytest.mark.e2e


def perplexity(found: list[torch.Tensor], samples: list[list[int]]) -> float:
    losses = [
        -one[:-1].gather(-1, torch.tensor(sample[1:])[:, None])
        for one, sample in zip(found, samples, strict=True)
    ]
    return math.exp(float(torch.cat(losses).mean()))


def test_the_sample_model_over_the_cache_that_calibration_chose(
    sample_checkpoint: Path, sample_fp8: Path
) -> None:
    """Held-out texts: perplexity ratio at most 1.005, mean KL at most 0.005."""
    tokenizer = open_tokenizer(sample_checkpoint)
    quantization = read_manifest(sample_fp8).quantization
    assert quantization
    scales = quantization.cache
    assert scales and 0 < len(scales.kept) < len(scales.layers)
    samples = [tokenizer.encode(text, bos=True) for text in HELD_OUT]
    model = opened(sample_checkpoint)
    exact = answers(model, samples, None)
    found = answers(model, samples, scales)
    ratio = perplexity(found, samples) / perplexity(exact, samples)
    assert ratio <= 1.005
    assert divergence(exact, found) <= 0.005
