"""An FP8 checkpoint's own scales, taken over into a bundle; its codes stay as they are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nemo_trt import e4m3
from nemo_trt.e4m3 import E4M3_MAX, scale_of
from nemo_trt.errors import ExportError
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.export.checkpoints.fp8 import StoredScales
from nemo_trt.quantization import STORED, Activation, Quantization, groups
from nemo_trt.tensors import LazyTensor


def stored_quantization(checkpoint: Checkpoint) -> Quantization:
    """What an FP8 checkpoint says of its numbers, as a bundle states it.

    A group whose weights are not FP8 there stays in BF16.

    Raises:
        ExportError: a group's weights are partly FP8, or its inputs have different scales.
    """
    activations, kept = {}, {}
    for group, weights in groups(checkpoint.config):
        fp8 = [name for name in weights if name in checkpoint.fp8]
        if not fp8:
            if all(name in checkpoint.tensors for name in weights):
                kept[group] = "not FP8 in the checkpoint"
            continue
        if len(fp8) < len(weights):
            other = next(name for name in weights if name not in fp8)
            raise ExportError(
                f"{other} must be FP8 like {fp8[0]}, which reads the same input, got "
                f"{checkpoint.tensors[other].dtype}. Read the weights as BF16 with --dequantise."
            )
        inputs = {name: checkpoint.fp8[name].input for name in weights}
        if len(set(inputs.values())) > 1:
            raise ExportError(
                f"The weights of {group} read one input and must have one scale of it, got "
                f"{sorted(set(inputs.values()))}. --merge-scales takes the largest."
            )
        amax = inputs[weights[0]] * E4M3_MAX
        activations[group] = Activation(amax=amax, clip=amax)
    scales = checkpoint.fp8.values()
    return Quantization(
        weight_scales="per-channel" if any(one.weight.ndim for one in scales) else "per-tensor",
        method=STORED,
        calibration={"kind": checkpoint.fp8_kind},
        activations=activations,
        weight_amax={n: float(one.weight.max()) * E4M3_MAX for n, one in checkpoint.fp8.items()},
        kl=None,
        max_kl=None,
        kept=kept,
    )


def extra_products(checkpoint: Checkpoint) -> int:
    """How many products an engine runs more because weights of a group have different scales."""
    extra = 0
    for _, weights in groups(checkpoint.config):
        found = [checkpoint.fp8[name].weight for name in weights if name in checkpoint.fp8]
        if any(scale.ndim for scale in found):
            extra += len(found) - 1
        elif found:
            extra += len({float(scale.astype(ml_dtypes.bfloat16)) for scale in found}) - 1
    return extra


def merge_scales(checkpoint: Checkpoint) -> Checkpoint:
    """Give the weights of each group one scale, its largest, and their input likewise.

    Weights whose scale was another are rounded to E4M3 a second time. Weights with a scale a row
    keep it: it cannot be one.
    """
    tensors: dict[str, LazyTensor] = dict(checkpoint.tensors)
    scales: dict[str, StoredScales] = dict(checkpoint.fp8)
    for _, weights in groups(checkpoint.config):
        found = {name: scales[name] for name in weights if name in scales}
        if not found:
            continue
        highest = max(one.input for one in found.values())
        one_each = not any(one.weight.ndim for one in found.values())
        largest = max(float(one.weight.max()) for one in found.values())
        alike = len({float(one.weight.max()) for one in found.values()}) == 1
        for name, one in found.items():
            if alike or not one_each:
                scales[name] = replace(one, input=highest)
                continue
            merged = np.array(scale_of(largest * E4M3_MAX), np.float32)
            scales[name] = StoredScales(weight=merged, input=highest)
            source = tensors[name]
            tensors[name] = Rescaled(
                name=name,
                dtype=source.dtype,
                shape=source.shape,
                source=source,
                before=float(one.weight),
                after=float(merged),
            )
    files = () if tensors != checkpoint.tensors else checkpoint.weight_files
    return replace(checkpoint, tensors=tensors, fp8=scales, weight_files=files)


def weight_scales(
    stored: Mapping[str, StoredScales], name: str, num_rows: int, per_channel: bool
) -> NDArray[np.float32]:
    """A weight's scale as the graph holds it: () or (N,)."""
    scale = stored[name].weight
    return np.broadcast_to(scale, (num_rows,)) if per_channel else scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled(LazyTensor):
    """E4M3 codes of one scale as codes of another.

    Attributes:
        before: the scale of the source.
        after: the scale that these codes are of.
    """

    source: LazyTensor
    before: float
    after: float

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`."""
        wide = e4m3.to_float32(self.source.rows(start, stop), self.before) / np.float32(self.after)
        return np.clip(wide, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
