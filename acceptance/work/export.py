"""Export: the checkpoint becomes a bundle."""

from pathlib import Path

from nemo_trt.manifest import GRAPH_FILE, is_bundle
from nemo_trt.precision import DType
from nemo_trt.progress import Progress

from .done import Done, require_packages


def run(
    *,
    checkpoint: str,
    bundle: str,
    precision: str,
    calibration: str | None,
    samples: int | None,
    max_kl: float,
    progress: Progress,
) -> Done:
    """Export; FP8 is calibrated first, unless the checkpoint holds FP8 weights and their scales."""
    require_packages("export", "torch", "onnx-ir", "onnxscript", "safetensors")
    from nemo_trt.engines.tokenizers import open_tokenizer
    from nemo_trt.export.bundle import export_bundle
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.export.quantization.quantize import quantize
    from nemo_trt.export.quantization.stored import stored_quantization

    target = Path(bundle)
    opened = open_checkpoint(Path(checkpoint), keep_fp8=precision == DType.FP8)
    quantization = None
    if precision == DType.FP8 and opened.fp8:
        quantization = stored_quantization(opened)
    elif precision == DType.FP8:
        quantization = quantize(
            opened,
            open_tokenizer,
            calibration=Path(calibration) if calibration else None,
            samples=samples,
            max_kl=max_kl,
            progress=progress,
        )
    manifest = export_bundle(
        opened,
        target,
        precision=DType(precision),
        force=is_bundle(target),
        quantization=quantization,
        progress=progress,
    )
    fp8 = {}
    if quantization:
        measured = len(quantization.activations)
        fp8 = {
            "fp8_groups": measured - len(quantization.kept),
            "groups": measured,
            "calibration_kl_nats": quantization.kl,
        }
    return Done(
        product={"bundle_id": manifest.bundle_id},
        facts={
            "bundle": target.name,
            "checkpoint_format": opened.format,
            "num_layers": manifest.config.num_layers,
            "num_parameters": manifest.config.num_parameters,
            "weight_bytes": manifest.weight_bytes,
            "graph_bytes": (target / GRAPH_FILE).stat().st_size,
            "tools": dict(manifest.tools),
            **fp8,
        },
    )
