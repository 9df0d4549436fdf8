"""Merges PEFT's LoRA adapters into a checkpoint, row by row as its weights stream.

W' = W + weight * scaling * B @ A in fp32, rounded once to W's own dtype; scaling is alpha / r, or
alpha / sqrt(r) for rank-stabilised LoRA. Source: PEFT, tuners/lora.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16
from nemo_trt.digest import sha256_file
from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.safetensors import read_layout
from nemo_trt.tensors import LazyTensor

from .checkpoint import Checkpoint
from .fields import Fields
from .text_files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<which>[AB])\.weight$")
# Fields that change what is computed, and their values that change nothing.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "corda_config": (None,),
    "megatron_config": (None,),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, and how much of it is added."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Adapter":
        """Read PATH or PATH:weight.

        Raises:
            CheckpointError: the weight is no finite number.
        """
        path, colon, weight = text.rpartition(":")
        if not colon or "/" in weight:
            return cls(Path(text))
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise CheckpointError(f"--lora must be PATH or PATH:weight, got {text!r}.")
        return cls(Path(path), number)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delta:
    """One adapter's part of a weight: B (N, r) and A (r, K), fp32, the scaling in B."""

    b: NDArray[np.float32]
    a: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(LazyTensor):
    """A weight with deltas of low rank added."""

    source: LazyTensor
    deltas: tuple[_Delta, ...]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`."""
        total = _float32(self.source.rows(start, stop), self.dtype)
        for delta in self.deltas:
            total += delta.b[start:stop] @ delta.a
        if self.dtype is DType.BF16:
            return bfloat16.from_float32(total)
        return total.astype(self.dtype.numpy_name)


def merge_adapters(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """The checkpoint with adapters merged into it, in their order. Reads the adapters alone.

    Raises:
        CheckpointError: an adapter is damaged, of a kind that is not LoRA alone, or is for modules
            that this model does not have.
    """
    if adapters and checkpoint.fp8:
        raise CheckpointError(
            f"Adapters must be merged into BF16 weights, got FP8 ones in {checkpoint.path}. Use "
            "the BF16 checkpoint, or read these as BF16 with --dequantise."
        )
    deltas: dict[str, list[_Delta]] = {}
    for adapter in adapters:
        for name, delta in _read(adapter, checkpoint).items():
            deltas.setdefault(name, []).append(delta)
    if not deltas:
        return checkpoint
    tensors = {
        name: Merged(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            source=tensor,
            deltas=tuple(deltas[name]),
        )
        if name in deltas
        else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    record = (*checkpoint.adapters, *(_described(adapter) for adapter in adapters))
    return replace(checkpoint, tensors=tensors, weight_files=(), adapters=record)


def _described(adapter: Adapter) -> dict[str, str | float]:
    """What a manifest says of an adapter; the digest is of its config and its weights."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(sha256_file(adapter.path / name).encode())
    path = str(adapter.path.resolve())
    return {"path": path, "weight": adapter.weight, "sha256": digest.hexdigest()}


def _read(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, _Delta]:
    """An adapter's deltas by the canonical name of the weight that each is for."""
    path = adapter.path
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"{path} must be a PEFT adapter with {CONFIG} and {WEIGHTS}, got something else. "
            "(A pickled adapter_model.bin is not read.)"
        )
    fields = Fields(read_json(path / CONFIG), path / CONFIG)
    for name, allowed in _ONLY.items():
        fields.only(name, *allowed, why="only plain LoRA is merged")
    found: dict[str, dict[str, LazyTensor]] = {}
    for key, tensor in read_layout(path / WEIGHTS).items():
        match = _KEY.match(key)
        if match is None:
            raise CheckpointError(
                f"{path / WEIGHTS} holds {key}, which is no weight of plain LoRA."
            )
        weight = f"{match['module']}.weight"
        target = checkpoint.tensors.get(weight)
        if target is None or len(target.shape) != 2 or weight == "model.embed_tokens.weight":
            raise CheckpointError(
                f"{path / WEIGHTS} adapts {match['module']}, a module that the model does not have "
                "or that is no product."
            )
        found.setdefault(weight, {})[match["which"]] = tensor
    if not found:
        raise CheckpointError(f"{path / WEIGHTS} must hold at least one adapted module, got none.")
    return {
        weight: _delta(weight, pair, checkpoint.tensors[weight], fields, adapter)
        for weight, pair in found.items()
    }


def _delta(
    weight: str,
    pair: Mapping[str, LazyTensor],
    target: LazyTensor,
    fields: Fields,
    adapter: Adapter,
) -> _Delta:
    where, module = adapter.path / WEIGHTS, weight.removesuffix(".weight")
    if set(pair) != {"A", "B"}:
        raise CheckpointError(f"{where} must hold lora_A and lora_B of {module}, got one of them.")
    a, b = pair["A"], pair["B"]
    rank = a.shape[0] if a.shape else 0
    if a.shape != (rank, target.shape[1]) or b.shape != (target.shape[0], rank) or not rank:
        raise CheckpointError(
            f"{module} in {where} must have A (r, {target.shape[1]}) and B ({target.shape[0]}, r), "
            f"got {list(a.shape)} and {list(b.shape)}."
        )
    stated = _patterned(fields, "rank_pattern", "r", module)
    if stated != rank:
        raise CheckpointError(
            f"{module} in {where} must have rank {stated:g} by {CONFIG}, got {rank}."
        )
    alpha = _patterned(fields, "alpha_pattern", "lora_alpha", module)
    scaling = alpha / (math.sqrt(rank) if fields.flag("use_rslora") else rank)
    return _Delta(
        b=_float32(b.rows(0, b.shape[0]), b.dtype) * np.float32(adapter.weight * scaling),
        a=_float32(a.rows(0, rank), a.dtype),
    )


def _patterned(fields: Fields, patterns: str, default: str, module: str) -> float:
    """A number for a module: that of the first pattern its name ends in, else the default."""
    found = fields.raw.get(patterns) or {}
    if not isinstance(found, dict):
        raise fields.error(patterns, "must be an object")
    for pattern, value in found.items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise fields.error(patterns, f"must have regular expressions ({error})") from error
        if matches:
            return Fields({pattern: value}, f"{patterns} of {fields.where}").number(pattern)
    return fields.number(default)


def _float32(values: NDArray[Any], dtype: DType) -> NDArray[np.float32]:
    if dtype is DType.BF16:
        return bfloat16.to_float32(values)
    return values.astype(np.float32)
