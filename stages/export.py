"""Exports a checkpoint: open it, merge LoRA adapters, find the FP8 scales, write the bundle."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from nemo_trt.bundle import Bundle
from nemo_trt.choices import require_choice, require_range
from nemo_trt.defaults import MAX_KL
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.errors import ExportError
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import Checkpoint, open_checkpoint
from nemo_trt.export.checkpoints.lora import Adapter, merge_adapters
from nemo_trt.export.quantization.observe import Method
from nemo_trt.export.quantization.quantize import quantize
from nemo_trt.export.quantization.stored import merge_scales, stored_quantization
from nemo_trt.export.target import require_target
from nemo_trt.manifest import WeightsMode
from nemo_trt.precision import DType, precision_named
from nemo_trt.progress import Progress
from nemo_trt.quantization import Quantization, WeightScales

from .tokenizer import require_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Options:
    """How an FP8 bundle gets its scales. A checkpoint with FP8 weights keeps its own.

    Attributes:
        calibration: file of calibration texts, JSON lines or one text per line; built-in texts by
            default.
        samples: number of calibration texts to use, from the first; all by default.
        scales: FP8 bundle, or its manifest, whose scales are used instead of calibrating.
        clip: range of an activation: "amax", its largest magnitude; "percentile", the magnitude
            that 99.999 % of the values do not exceed; "mse", the one with the least squared error.
        max_kl: limit for the KL divergence from the unquantised model, in nats. Groups of
            projections are excluded, and stay in BF16, until the rest is expected to meet it.
        fp8_weights: one weight scale per merged projection, or per output channel.
        fp8_lm_head: also quantise the head.
        device: PyTorch device to calibrate on.
        merge_scales: for a checkpoint with FP8 weights: use one scale for q, k and v, and one for
            gate and up.

    Raises:
        RequestError: an option has no such value.
    """

    calibration: Path | None = None
    samples: int | None = None
    scales: Path | None = None
    clip: Method = "amax"
    max_kl: float = MAX_KL
    fp8_weights: WeightScales = "per-tensor"
    fp8_lm_head: bool = False
    device: str = "cpu"
    merge_scales: bool = False

    def __post_init__(self) -> None:
        require_choice("clip", self.clip, get_args(Method))
        require_choice("fp8_weights", self.fp8_weights, get_args(WeightScales))
        require_range("samples", self.samples, 1)
        require_range("max_kl", self.max_kl, 0)


def export_checkpoint(
    checkpoint: Path,
    bundle: Path,
    *,
    precision: DType | str | None = None,
    weights: WeightsMode = "copy",
    format: str | None = None,
    dequantise: bool = False,
    adapters: Sequence[Adapter] = (),
    fp8: Fp8Options | None = None,
    sha256: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a checkpoint to a bundle: an ONNX graph with KV-cache inputs beside its weights.

    Args:
        checkpoint: the checkpoint's file or folder.
        bundle: folder to write. With `weights="in-place"`, the folder that holds the weight files.
        precision: compute precision; by default the precision of the stored weights. "fp8"
            calibrates first, unless the checkpoint holds FP8 weights and their scales.
        weights: "copy" the weight files, or use them "in-place".
        format: the checkpoint's format; by default the first one whose files are found.
        dequantise: read FP8 weights as BF16.
        adapters: PEFT LoRA adapters to merge into the weights, in this order.
        fp8: options for precision "fp8"; refused with any other.
        sha256: record the SHA-256 of every weight file.
        force: replace an existing bundle.
        progress: receives progress updates; silent by default.

    Returns:
        The bundle that was written.

    Raises:
        CheckpointError: the checkpoint or an adapter is damaged or not supported.
        ExportError: the target exists, the disk is full, or an option does not apply.
        RequestError: an option has no such value; calibration samples are unreadable or too few.
    """
    chosen = precision_named(precision) if precision is not None else None
    require_choice("weights", weights, get_args(WeightsMode))
    if fp8 is not None and chosen is not DType.FP8:
        raise ExportError(f"FP8 options must go with precision fp8, got {chosen}. Leave them out.")
    opened = merge_adapters(
        open_checkpoint(
            checkpoint,
            format,
            dequantise=dequantise,
            keep_fp8=chosen is DType.FP8 and not dequantise,
        ),
        list(adapters),
    )
    require_tokenizer(opened)
    quantization = None
    if chosen is DType.FP8:  # refused here before minutes of calibration
        require_target(opened, bundle, precision=chosen, weights=weights, force=force)
        opened, quantization = _with_scales(opened, fp8 or Fp8Options(), progress)
    manifest = export_bundle(
        opened,
        bundle,
        precision=chosen,
        weights=weights,
        sha256=sha256,
        force=force,
        quantization=quantization,
        progress=progress,
    )
    return Bundle(path=bundle, manifest=manifest)


def _with_scales(
    opened: Checkpoint, options: Fp8Options, progress: Progress | None
) -> tuple[Checkpoint, Quantization]:
    """The checkpoint, and its own scales or those of a calibration."""
    if opened.fp8:
        plain = Fp8Options(merge_scales=options.merge_scales)
        for name in (one.name for one in fields(options)):
            if getattr(options, name) != getattr(plain, name):
                raise ExportError(
                    f"{opened.path} holds FP8 weights and their scales: leave "
                    f"--{name.replace('_', '-')} out, or quantise anew with --dequantise."
                )
        if options.merge_scales:
            opened = merge_scales(opened)
        return opened, stored_quantization(opened)
    if options.merge_scales:
        raise ExportError("--merge-scales is for checkpoints of FP8 weights. Leave it out.")
    return opened, quantize(
        opened,
        open_tokenizer,
        calibration=options.calibration,
        samples=options.samples,
        scales=options.scales,
        clip=options.clip,
        max_kl=options.max_kl,
        fp8_weights=options.fp8_weights,
        fp8_lm_head=options.fp8_lm_head,
        device=options.device,
        progress=progress,
    )
