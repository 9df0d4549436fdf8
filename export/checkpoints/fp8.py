"""FP8 checkpoints read as BF16, where that is asked for; otherwise refused by name.

Kinds: `fp8` of AutoFP8, vLLM and transformers (one scale, or one a block of 128 x 128),
compressed-tensors (one scale, one a row or one a block), ModelOpt's unified export, and Mistral's
`qscale_weight`. In all of them a number is its code times its scale, although transformers calls
it `weight_scale_inv`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16, e4m3
from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.tensors import LazyTensor

from .text_files import read_json

MODELOPT = "hf_quant_config.json"
_SCALES = (".weight_scale", ".weight_scale_inv", ".qscale_weight")
# Of activations and of the cache: what is computed in BF16 does not need them.
_UNUSED = (
    ".input_scale",
    ".activation_scale",
    ".qscale_act",
    ".kv_scale",
    ".k_scale",
    ".v_scale",
    ".output_scale",
)


def quantization_of(raw: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The quantisation that a config.json, or ModelOpt's file beside it, states; None if none.

    Raises:
        CheckpointError: it is none of the FP8 kinds.
    """
    found = raw.get("quantization_config")
    if found is None and (folder / MODELOPT).is_file():
        found = read_json(folder / MODELOPT).get("quantization", {})
        found = {"quant_method": "modelopt", **found} if isinstance(found, dict) else found
    if found is None:
        return None
    where = f"quantization_config of {folder}"
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} must be an object, got {found!r}.")
    method = found.get("quant_method")
    if method == "compressed-tensors":
        groups = found.get("config_groups")
        kinds = [
            (group.get("weights") or {}) if isinstance(group, dict) else {}
            for group in (groups.values() if isinstance(groups, dict) else [{}])
        ]
        what = [f"{kind.get('num_bits')}-bit {kind.get('type')}" for kind in kinds]
        known = all(one == "8-bit float" for one in what)
        method = f"compressed-tensors ({', '.join(what)})"
    elif method == "modelopt":
        known = found.get("quant_algo") == "FP8"
        method = f"modelopt ({found.get('quant_algo')})"
    else:
        known = method == "fp8"
    if not known:
        raise CheckpointError(
            f"{where} names the method {method!r}, which is not read. "
            "Use the unquantised (BF16) checkpoint."
        )
    return {**found, "described": method}


def require_dequantise(described: object, path: Path, dequantise: bool) -> None:
    """Raise a CheckpointError unless an FP8 checkpoint may be read as BF16."""
    if not dequantise:
        raise CheckpointError(
            f"{path} holds FP8 weights (method {described!r}), whose scales are not taken over "
            "into an FP8 bundle. Read them as BF16 with --dequantise, or use the BF16 checkpoint."
        )


def dequantised(
    tensors: Mapping[str, LazyTensor], block: object, where: Path
) -> dict[str, LazyTensor]:
    """FP8 weights as BF16 ones, their scales and those of activations and cache left out.

    Args:
        block: (rows, columns) that share a scale, or None.

    Raises:
        CheckpointError: a weight lacks its scale, or has one of another shape.
    """
    found: dict[str, LazyTensor] = {}
    scales = {name for name in tensors if name.endswith(_SCALES)}
    for name, tensor in tensors.items():
        if name in scales or name.endswith(_UNUSED):
            continue
        if tensor.dtype is not DType.FP8:
            found[name] = tensor
            continue
        stem = name.removesuffix(".weight")
        of_it = [f"{stem}{suffix}" for suffix in _SCALES if f"{stem}{suffix}" in scales]
        if len(of_it) != 1 or len(tensor.shape) != 2:
            raise CheckpointError(
                f"{name} in {where} is FP8 and must have one scale beside it, got {len(of_it)}."
            )
        scales.remove(of_it[0])
        found[name] = _scaled(tensor, tensors[of_it[0]], block, where)
    if scales:
        raise CheckpointError(f"{where} holds {min(scales)}, a scale of no FP8 weight.")
    return found


def _scaled(tensor: LazyTensor, scale: LazyTensor, block: object, where: Path) -> "Scaled":
    if scale.dtype not in (DType.FP32, DType.BF16, DType.FP16):
        raise CheckpointError(f"{scale.name} in {where} must be a float, got {scale.dtype}.")
    values = np.array(scale.read())
    values = bfloat16.to_float32(values) if scale.dtype is DType.BF16 else values.astype(np.float32)
    rows, columns = tensor.shape
    if values.size == 1:
        values, shape = values.reshape(1, 1), (rows, columns)
    elif values.size == rows and values.shape[0] == rows:
        values, shape = values.reshape(rows, 1), (1, columns)
    else:
        shape = _block(block, where)
        wanted = (-(-rows // shape[0]), -(-columns // shape[1]))
        if values.shape != wanted:
            raise CheckpointError(
                f"{scale.name} in {where} must be one number, one a row, or {list(wanted)} for "
                f"blocks of {list(shape)}, got {list(values.shape)}."
            )
    if not (np.isfinite(values) & (values > 0)).all():
        raise CheckpointError(f"{scale.name} in {where} must be positive and finite.")
    return Scaled(
        name=tensor.name,
        dtype=DType.BF16,
        shape=tensor.shape,
        source=tensor,
        scale=values,
        block=shape,
    )


def _block(block: object, where: Path) -> tuple[int, int]:
    if (
        isinstance(block, list)
        and len(block) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in block)
    ):
        return block[0], block[1]
    raise CheckpointError(
        f"weight_block_size of {where} must be two positive integers, since there are scales of "
        f"blocks, got {block!r}."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled(LazyTensor):
    """An FP8 weight times its scales, rounded to BF16.

    Attributes:
        scale: (blocks of rows, blocks of columns), fp32.
        block: rows and columns that share a scale.
    """

    source: LazyTensor
    scale: NDArray[np.float32]
    block: tuple[int, int]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`."""
        bits = self.source.rows(start, stop)
        if self.scale.size == 1:
            return bfloat16.from_float32(e4m3.to_float32(bits, float(self.scale[0, 0])))
        each = self.scale[np.arange(start, stop) // self.block[0]]  # (rows, blocks)
        wide = np.repeat(each, self.block[1], axis=1)[:, : self.shape[1]]
        return bfloat16.from_float32(e4m3.to_float32(bits, wide))


def block_size(quantization: Mapping[str, Any]) -> object:
    """The block that shares a scale, wherever a config states it."""
    if quantization.get("weight_block_size") is not None:
        return quantization["weight_block_size"]
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and weights.get("block_structure") is not None:
            found: object = weights["block_structure"]
            return found
    return None
