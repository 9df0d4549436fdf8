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
from nemo_trt.tensors import LazyTensor, float32_rows, same_numbers

from .checkpoint import Checkpoint
from .hub_cache import in_snapshot
from .lora_config import CONFIG, AdapterConfig

WEIGHTS = "adapter_model.safetensors"
_KEY = re.compile(
    r"^base_model\.model\.(?P<module>.+?)"
    r"\.(?:lora_(?P<which>[AB])\.weight|lora_embedding_(?P<embedding>[AB])|(?P<base>base_layer\.)?weight)$"
)
_EMBEDDING = "model.embed_tokens"
_DTYPES = (DType.FP32, DType.FP16, DType.BF16)


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
class _Change:
    """What adapters do to a weight: `base` in its place where one is stored, and deltas added."""

    base: LazyTensor | None
    deltas: tuple[_Delta, ...]

    def then(self, later: "_Change", target: LazyTensor) -> "_Change":
        """The change of one adapter, and after it that of another, whichever comes first.

        Args:
            target: the checkpoint's own weight; an equal one in an adapter changes nothing.
        """
        first, second = (
            None if change.base is None or same_numbers(change.base, target) else change.base
            for change in (self, later)
        )
        alike = first and second and same_numbers(first, second)
        if not alike and (first or second):
            raise CheckpointError(
                f"{target.name} must be adapted by one adapter alone where an adapter stores "
                "another one: PEFT would let the last one win. Merge the adapters with PEFT."
            )
        return _Change(base=first, deltas=(*self.deltas, *later.deltas))


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(LazyTensor):
    """A weight with deltas of low rank added."""

    source: LazyTensor
    deltas: tuple[_Delta, ...]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`."""
        total = float32_rows(self.source, start, stop)
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
    changes: dict[str, _Change] = {}
    adapters = [replace(adapter, path=in_snapshot(adapter.path)) for adapter in adapters]
    for adapter in adapters:
        for name, change in _read(adapter, checkpoint).items():
            if name in changes:
                change = changes[name].then(change, checkpoint.tensors[name])
            changes[name] = change
    if not changes:
        return checkpoint
    tensors = {
        name: Merged(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            source=changes[name].base or tensor,
            deltas=changes[name].deltas,
        )
        if name in changes
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


def _read(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, _Change]:
    """What an adapter changes, by the canonical name of the weight that each is for."""
    path = adapter.path
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"{path} must be a PEFT adapter with {CONFIG} and {WEIGHTS}, got something else. "
            "(A pickled adapter_model.bin is not read.)"
        )
    config = AdapterConfig(path / CONFIG)
    found: dict[str, dict[str, LazyTensor]] = {}
    for key, tensor in read_layout(path / WEIGHTS).items():
        match = _KEY.match(key)
        if match is None:
            raise CheckpointError(
                f"{path / WEIGHTS} holds {key}, which is no weight of plain LoRA."
            )
        module = match["module"]
        target = checkpoint.tensors.get(f"{module}.weight")
        embedding = module == _EMBEDDING
        lora = match["embedding"] if embedding else match["which"]
        whole = not (match["which"] or match["embedding"])
        if target is None or (not whole and (len(target.shape) != 2 or lora is None)):
            raise CheckpointError(
                f"{path / WEIGHTS} adapts {module}, a module that the model does not have or that "
                "this part of an adapter is not for."
            )
        if embedding and checkpoint.config.tied_head:
            raise CheckpointError(
                f"{path / WEIGHTS} adapts {module}, which is also the head of {checkpoint.path}: "
                "what the head then is would be a guess. Merge the adapter with PEFT."
            )
        parts = found.setdefault(module, {})
        if parts.setdefault(lora or "base", tensor) is not tensor:
            raise CheckpointError(f"{path / WEIGHTS} holds two weights for {module}.")
    if not found:
        raise CheckpointError(f"{path / WEIGHTS} must hold at least one adapted module, got none.")
    config.require_saved({module for module, parts in found.items() if set(parts) == {"base"}})
    return {
        f"{module}.weight": _change(
            module, parts, checkpoint.tensors[f"{module}.weight"], config, adapter
        )
        for module, parts in found.items()
    }


def _change(
    module: str,
    parts: Mapping[str, LazyTensor],
    target: LazyTensor,
    config: AdapterConfig,
    adapter: Adapter,
) -> _Change:
    """What an adapter does to one weight: another base, as PEFT stores it, a delta, or both."""
    where = adapter.path / WEIGHTS
    base = parts.get("base")
    if base is not None and base.shape != target.shape:
        raise CheckpointError(
            f"{module} in {where} must be {list(target.shape)} as in the checkpoint, got "
            f"{list(base.shape)}. A resized vocabulary is not merged."
        )
    if base is not None and base.dtype not in _DTYPES:
        raise CheckpointError(f"{module} in {where} must be of floating point, got {base.dtype}.")
    if base is not None and set(parts) == {"base"}:
        if adapter.weight != 1 and not same_numbers(base, target):
            raise CheckpointError(
                f"{module} in {where} replaces the checkpoint's own, so that --lora must have "
                f"weight 1, got {adapter.weight:g}."
            )
        return _Change(base=base, deltas=())
    if {"A", "B"} - set(parts):
        raise CheckpointError(f"{where} must hold lora_A and lora_B of {module}, got one of them.")
    config.require_target(module)
    return _Change(base=base, deltas=(_delta(module, parts, target, config, adapter),))


def _delta(
    module: str,
    parts: Mapping[str, LazyTensor],
    target: LazyTensor,
    config: AdapterConfig,
    adapter: Adapter,
) -> _Delta:
    where = adapter.path / WEIGHTS
    a, b = parts["A"], parts["B"]
    out, into = target.shape[::-1] if module == _EMBEDDING else target.shape
    rank = a.shape[0] if a.shape else 0
    if a.shape != (rank, into) or b.shape != (out, rank) or not rank:
        raise CheckpointError(
            f"{module} in {where} must have A (r, {into}) and B ({out}, r), "
            f"got {list(a.shape)} and {list(b.shape)}."
        )
    if {a.dtype, b.dtype} - set(_DTYPES):
        raise CheckpointError(f"{module} in {where} must be of floating point, got {a.dtype}.")
    stated = config.rank(module)
    if stated != rank:
        raise CheckpointError(
            f"{module} in {where} must have rank {stated:g} by {CONFIG}, got {rank}."
        )
    factor = np.float32(adapter.weight * config.scaling(module, rank))
    first, second = (float32_rows(one, 0, one.shape[0]) for one in (b, a))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise CheckpointError(f"{module} in {where} must hold finite numbers, got NaN or infinity.")
    if module == _EMBEDDING:  # its weight is (V, C), a row a token: the transpose of B @ A
        first, second = np.ascontiguousarray(second.T), np.ascontiguousarray(first.T)
    return _Delta(b=first * factor, a=second)
