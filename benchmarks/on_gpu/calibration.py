"""Calibration at full size: time and peak memory."""

import resource
import time
from typing import Any

import torch

from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.quantization.calibrate import calibrate
from nemo_trt.export.quantization.texts import read_calibration_set
from nemo_trt.progress import Silent
from on_gpu.scale import Work


def run(work: Work) -> dict[str, Any]:
    """The built-in set through all layers, on the device."""
    scale = work.scale
    checkpoint = open_checkpoint(work.checkpoint)
    if checkpoint.tokenizer_files:
        texts = read_calibration_set()
        samples = texts.tokens(open_tokenizer(work.checkpoint), scale.config.vocab_size)
    else:
        rng = torch.Generator().manual_seed(0)
        drawn = torch.randint(3, scale.config.vocab_size, (scale.samples, 16), generator=rng)
        samples = drawn.tolist()
    samples = samples[: scale.samples]
    if scale.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    quantization = calibrate(
        checkpoint,
        samples,
        calibration={"name": "benchmark"},
        max_kl=1.0,
        device=scale.device,
        progress=Silent(),
    )
    took = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if scale.device == "cuda" else 0
    return {
        "samples": len(samples),
        "tokens": sum(map(len, samples)),
        "layers": scale.config.num_layers,
        "seconds": took,
        "peak_device_bytes": peak,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "kl": quantization.kl,
        "kept": len(quantization.kept),
    }


def table(found: dict[str, Any]) -> str:
    """One row."""
    return (
        "| samples | tokens | layers | s | peak device GB | peak RSS GB | KL | groups in BF16 |\n"
        "|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        f"| {found['samples']} | {found['tokens']} | {found['layers']} | {found['seconds']:.1f} "
        f"| {found['peak_device_bytes'] / 1e9:.2f} | {found['peak_rss_bytes'] / 1e9:.2f} "
        f"| {found['kl']:.4f} | {found['kept']} |"
    )
