"""FP8 checkpoints: their codes and scales as they are, or read as BF16; others refused by name.

Kinds: `fp8` of AutoFP8, vLLM and transformers (one scale, or one a block of 128 x 128),
compressed-tensors (one scale, one a row or one a block), ModelOpt's unified export, and Mistral's
`qscale_weight`. In all of them a number is its code times its scale, although transformers calls
it `weight_scale_inv`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16, e4m3
from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.shown import shown
from nemo_trt.tensors import LazyTensor

from .text_files import read_json

MODELOPT = "hf_quant_config.json"
_SCALES = (".weight_scale", ".weight_scale_inv", ".qscale_weight")
_INPUT_SCALES = (".input_scale", ".activation_scale", ".qscale_act")
# Of the cache, which is BF16 in every bundle.
_CACHE_SCALES = (
    ".kv_scale",
    ".k_scale",
    ".v_scale",
    ".output_scale",
)
_ALL_SCALES = (*_SCALES, *_INPUT_SCALES, *_CACHE_SCALES)


def quantization_of(raw: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The quantisation that a config.json, or ModelOpt's file beside it, states; None if none.

    Raises:
        CheckpointError: it is none of the FP8 kinds.
    """
    key = "quantization_config"
    found = raw.get(key)
    if found is None and raw.get("compression_config") is not None:  # early llm-compressor's name
        key = "compression_config"
        found = raw[key]
        if isinstance(found, dict):
            found = {"quant_method": "compressed-tensors", **found}
    if found is None and (folder / MODELOPT).is_file():
        found = read_json(folder / MODELOPT).get("quantization", {})
        found = {"quant_method": "modelopt", **found} if isinstance(found, dict) else found
    if found is None:
        return None
    where = f"{key} of {folder}"
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} must be an object, got {shown(found)}.")
    method = found.get("quant_method")
    if method == "compressed-tensors":
        groups = found.get("config_groups")
        kinds = [
            (group.get("weights") or {}) if isinstance(group, dict) else {}
            for group in (groups.values() if isinstance(groups, dict) else [{}])
        ]
        what = [f"{_said(kind, 'num_bits')}-bit {_said(kind, 'type')}" for kind in kinds]
        known = all(one == "8-bit float" for one in what)
        method = f"compressed-tensors ({', '.join(what)})"
    elif method == "modelopt":
        known = found.get("quant_algo") == "FP8"
        method = f"modelopt ({_said(found, 'quant_algo')})"
    else:
        known = method == "fp8"
    if not known:
        raise CheckpointError(
            f"{where} names the method {shown(method)}, which is not read. "
            "Use the unquantised (BF16) checkpoint."
        )
    return {**found, "described": method}


def _said(fields: Mapping[str, Any], name: str) -> str:
    """A field's text, short whatever it is."""
    value = fields.get(name)
    return value[:40] if isinstance(value, str) else shown(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredScales:
    """The scales of an FP8 weight, as its checkpoint states them.

    Attributes:
        weight: () or one a row, (N,), fp32.
        input: of the activation that the weight is multiplied with.
    """

    weight: NDArray[np.float32]
    input: float


def refused(described: object, path: Path) -> CheckpointError:
    """What to say where FP8 weights are neither asked for nor to be read as BF16."""
    return CheckpointError(
        f"{path} holds FP8 weights (method {shown(described)}). Export them as they are with "
        "--precision fp8, or read them as BF16 with --dequantise."
    )


def require_no_fp8(tensors: Mapping[str, LazyTensor], where: Path) -> None:
    """Refuse FP8 weights that no config describes.

    Raises:
        CheckpointError: there are some.
    """
    found = [name for name, tensor in tensors.items() if tensor.dtype is DType.FP8]
    if found:
        raise CheckpointError(
            f"{where} holds FP8 weights (such as {found[0]}) although its config.json has neither "
            "quantization_config nor compression_config, so that their kind is unknown. Take "
            "config.json from the checkpoint's own repository."
        )


def split_off_scales(
    tensors: Mapping[str, LazyTensor], where: Path
) -> tuple[dict[str, LazyTensor], dict[str, StoredScales]]:
    """The weights alone, FP8 ones as the codes that they are, and the scales of these.

    Raises:
        CheckpointError: a weight lacks a scale or has one of blocks, or its activations' scale is
            not static.
    """
    scales = {}
    weights = {n: t for n, t in tensors.items() if not n.endswith(_ALL_SCALES)}
    for name, tensor, scale in _scaled_weights(tensors, where):
        values = _values(scale, where)
        if values.size == 1:
            values = values.reshape(())
        elif values.size == tensor.shape[0] == values.shape[0]:
            values = values.reshape(-1)
        else:
            raise CheckpointError(
                f"{scale.name} in {where} must be one number or one a row, got blocks "
                f"{list(values.shape)}: FP8 matmuls with a scale per block are not standard ONNX "
                "that TensorRT computes in FP8. Read the weights as BF16 with --dequantise."
            )
        stem = name.removesuffix(".weight")
        of_input = [f"{stem}{s}" for s in _INPUT_SCALES if f"{stem}{s}" in tensors]
        if len(of_input) != 1:
            raise CheckpointError(
                f"{name} in {where} must have one static scale of its input, got {len(of_input)}: "
                "scales made while it runs are not supported. Calibrate static ones: --dequantise "
                "--precision fp8."
            )
        static = _values(tensors[of_input[0]], where)
        if static.size != 1:
            raise CheckpointError(
                f"{of_input[0]} in {where} must be one number, got {list(static.shape)}."
            )
        scales[name] = StoredScales(weight=values, input=float(static.reshape(())))
    return weights, scales


def dequantised(
    tensors: Mapping[str, LazyTensor], block: object, where: Path
) -> dict[str, LazyTensor]:
    """FP8 weights as BF16 ones, their scales and those of activations and cache left out.

    Args:
        block: (rows, columns) that share a scale, or None.

    Raises:
        CheckpointError: a weight lacks its scale, or has one of another shape.
    """
    found = {name: t for name, t in tensors.items() if not name.endswith(_ALL_SCALES)}
    for name, tensor, scale in _scaled_weights(tensors, where):
        found[name] = _scaled(tensor, scale, block, where)
    return found


def _scaled_weights(
    tensors: Mapping[str, LazyTensor], where: Path
) -> Iterator[tuple[str, LazyTensor, LazyTensor]]:
    """Every FP8 weight's name, codes and scale."""
    scales = {name for name in tensors if name.endswith(_SCALES)}
    for name, tensor in tensors.items():
        if tensor.dtype is not DType.FP8 or name.endswith(_ALL_SCALES):
            continue
        stem = name.removesuffix(".weight")
        of_it = [f"{stem}{suffix}" for suffix in _SCALES if f"{stem}{suffix}" in scales]
        if len(of_it) != 1 or len(tensor.shape) != 2:
            raise CheckpointError(
                f"{name} in {where} is FP8 and must have one scale beside it, got {len(of_it)}."
            )
        scales.remove(of_it[0])
        yield name, tensor, tensors[of_it[0]]
    if scales:
        raise CheckpointError(f"{where} holds {min(scales)}, a scale of no FP8 weight.")


def _values(scale: LazyTensor, where: Path) -> NDArray[np.float32]:
    """A scale's numbers in fp32."""
    if scale.dtype not in (DType.FP32, DType.BF16, DType.FP16):
        raise CheckpointError(f"{scale.name} in {where} must be a float, got {scale.dtype}.")
    stored = np.array(scale.read())
    values = bfloat16.to_float32(stored) if scale.dtype is DType.BF16 else stored
    values = values.astype(np.float32)
    if not (np.isfinite(values) & (values > 0)).all():
        raise CheckpointError(f"{scale.name} in {where} must be positive and finite.")
    return values


def _scaled(tensor: LazyTensor, scale: LazyTensor, block: object, where: Path) -> "Scaled":
    values = _values(scale, where)
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
        f"blocks, got {shown(block)}."
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
