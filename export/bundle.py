"""Exports a checkpoint to a bundle: check, trace, write."""

from functools import partial
from pathlib import Path

from nemo_trt.manifest import Manifest, WeightsMode
from nemo_trt.precision import DType
from nemo_trt.progress import Progress, Silent
from nemo_trt.quantization import Quantization

from .checkpoints import Checkpoint, open_checkpoint
from .finite import require_finite
from .graph import describe
from .quantization.graph import set_scales
from .quantization.require import require_quantization
from .quantization.weights import scales_of, write_fp8_weights
from .target import require_target
from .trace import numerics_of, trace_decoder
from .weights import require_precision, write_weights
from .writer import BundleWriter, stored_tensors


def export_bundle(
    source: Path | Checkpoint,
    bundle: Path,
    *,
    precision: DType | None = None,
    weights: WeightsMode = "copy",
    sha256: bool = False,
    force: bool = False,
    quantization: Quantization | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Export a checkpoint to a bundle.

    Memory: the graph alone; no weight is allocated, and a copy happens inside the kernel. FP8
    weights are quantised in pieces of 8 MB.

    Args:
        source: what `open_checkpoint` reads, or what it gave.
        bundle: the folder to write. For `weights="in-place"` it is the folder that holds the
            checkpoint's weight files, or one above it: external data cannot lie outside.
        precision: compute precision; by default the one that the weights are stored in. Another
            one is cast in the graph, the bytes stay.
        weights: "copy" them into the bundle, or leave them "in-place".
        sha256: digest the weight files whole (reads every byte) and not only in samples.
        force: replace an existing bundle.
        quantization: scales of FP8, from `export.quantization.calibrate`, an FP8 bundle's manifest
            or, for an FP8 checkpoint, `export.quantization.stored`. Needed for FP8 alone.

    Returns:
        The manifest that was written.

    Raises:
        CheckpointError: the checkpoint is damaged or not supported.
        ExportError: the target exists, the disk is full, or the target does not suit `weights`.
    """
    progress = progress or Silent()
    progress.phase("read checkpoint headers")
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    chosen = require_precision(checkpoint, precision)
    require_quantization(chosen, quantization, checkpoint)
    locations = require_target(
        checkpoint,
        bundle,
        precision=chosen,
        weights=weights,
        force=force,
        quantization=quantization,
    )
    computed = quantization is not None and not checkpoint.fp8  # the FP8 weights, here
    if checkpoint.weight_files and not computed:  # others are checked as they are written
        require_finite(stored_tensors(checkpoint).values(), progress)
    progress.phase("trace the decoder")
    model = trace_decoder(
        checkpoint.config, chosen, numerics_of(checkpoint.config, chosen, quantization)
    )
    describe(model, checkpoint)
    writer = BundleWriter(
        checkpoint=checkpoint,
        model=model,
        precision=chosen,
        quantization=quantization,
        sha256=sha256,
        progress=progress,
    )
    if quantization is not None:
        scales = scales_of(checkpoint, quantization)
        set_scales(model.graph, scales)
        if computed:
            write_fp8 = partial(write_fp8_weights, checkpoint, quantization, scales)
            return writer.new_weights(bundle, write_fp8, replace=force)
    if not checkpoint.weight_files:
        return writer.new_weights(bundle, partial(write_weights, checkpoint), replace=force)
    if weights == "in-place":
        return writer.weights_in_place(bundle, locations)
    return writer.copy_weights(bundle, locations, replace=force)
