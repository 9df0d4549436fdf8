"""Scales for a checkpoint: of a calibration on texts, or of an earlier one."""

from collections.abc import Callable
from pathlib import Path

from nemo_trt.defaults import MAX_KL
from nemo_trt.errors import RequestError
from nemo_trt.export.checkpoints import Checkpoint, unpacked
from nemo_trt.manifest import MANIFEST_FILE, Manifest
from nemo_trt.progress import Progress, Silent
from nemo_trt.quantization import Quantization, WeightScales

from .calibrate import calibrate
from .observe import Method
from .texts import Encoder, read_calibration_set


def quantize(
    checkpoint: Checkpoint,
    open_tokenizer: Callable[[Path], Encoder],
    *,
    calibration: Path | None = None,
    samples: int | None = None,
    scales: Path | None = None,
    clip: Method = "amax",
    max_kl: float = MAX_KL,
    fp8_weights: WeightScales = "per-tensor",
    fp8_lm_head: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Quantization:
    """Calibrate a checkpoint, or take the scales of an earlier calibration.

    Args:
        checkpoint: unquantised.
        open_tokenizer: opens a folder of tokenizer files.
        calibration, samples: see `read_calibration_set`.
        scales: an FP8 bundle, or its manifest, whose scales are taken; no calibration.

    The rest is that of `calibrate`.

    Raises:
        RequestError: the samples are unreadable or too few, or `scales` has none.
        ExportError: there is nothing to calibrate on.
    """
    if scales:
        file = scales / MANIFEST_FILE if scales.is_dir() else scales
        found = Manifest.from_json(file.read_text(encoding="utf-8")).quantization
        if found is None:
            raise RequestError(f"{scales} must be of an FP8 bundle, got one without scales.")
        return found
    chosen = read_calibration_set(calibration, samples)
    with unpacked(checkpoint.tokenizer_files) as folder:
        tokenizer = open_tokenizer(folder) if folder else None
    return calibrate(
        checkpoint,
        chosen.tokens(tokenizer, checkpoint.config.vocab_size),
        calibration=chosen.describe(),
        method=clip,
        weight_scales=fp8_weights,
        max_kl=max_kl,
        fp8_lm_head=fp8_lm_head,
        device=device,
        progress=progress or Silent(),
    )
