"""Whether a quantisation belongs to the model that is exported."""

from nemo_trt.errors import ExportError
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.precision import DType
from nemo_trt.quantization import LM_HEAD, STORED, Quantization, groups


def require_quantization(
    precision: DType,
    quantization: Quantization | None,
    checkpoint: Checkpoint,
) -> None:
    """Refuse FP8 without scales of this model, and scales without FP8.

    Raises:
        ExportError: they do not belong together.
    """
    if (precision is DType.FP8) != (quantization is not None):
        raise ExportError("A quantisation must be given for FP8 and for nothing else. Calibrate.")
    if bool(checkpoint.fp8) != (quantization is not None and quantization.method == STORED):
        raise ExportError(
            f"{checkpoint.path} holds FP8 weights and must be exported with its own scales."
            if checkpoint.fp8
            else "The scales are an FP8 checkpoint's own, which no other one can take. Calibrate."
        )
    if quantization is None or checkpoint.fp8:
        return
    every = dict(groups(checkpoint.config))
    needed = {group for group in every if group != LM_HEAD}
    if not needed <= set(quantization.activations) <= set(every):
        odd = sorted(set(quantization.activations).symmetric_difference(needed))[:3]
        raise ExportError(
            f"The scales must be of this model's groups, got others, for example {odd}. "
            "Calibrate this checkpoint."
        )
    missing = [
        name
        for group, names in every.items()
        if quantization.is_fp8(group)
        for name in names
        if name not in quantization.weight_amax
    ]
    if missing:
        raise ExportError(f"The scales must tell the amax of {missing[0]}. Calibrate anew.")
