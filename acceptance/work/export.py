"""Export: the checkpoint becomes a bundle."""

from pathlib import Path

from nemo_trt.manifest import is_bundle
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
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.stages.export import Fp8Options, export_checkpoint

    target, fp8 = Path(bundle), None
    if precision == DType.FP8:
        own_scales = open_checkpoint(Path(checkpoint), keep_fp8=True).fp8
        fp8 = (
            Fp8Options()
            if own_scales
            else Fp8Options(
                calibration=Path(calibration) if calibration else None,
                samples=samples,
                max_kl=max_kl,
            )
        )
    made = export_checkpoint(
        Path(checkpoint),
        target,
        precision=precision,
        fp8=fp8,
        force=is_bundle(target),
        progress=progress,
    )
    manifest, counts = made.manifest, {}
    if found := manifest.quantization:
        measured = len(found.activations)
        counts = {
            "fp8_groups": measured - len(found.kept),
            "groups": measured,
            "calibration_kl_nats": found.kl,
        }
    return Done(
        product={"bundle_id": made.bundle_id},
        facts={
            "bundle": target.name,
            "checkpoint_format": manifest.source["format"],
            "num_layers": made.config.num_layers,
            "num_parameters": made.config.num_parameters,
            "weight_bytes": made.weight_bytes,
            "graph_bytes": made.graph_path.stat().st_size,
            "tools": dict(manifest.tools),
            **counts,
        },
    )
