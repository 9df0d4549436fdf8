"""LoRA adapters, merged by PEFT into one weight at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from nemo_trt.errors import CheckpointError

from .source import WeightSource

_NAME = "adapter"


@dataclass(frozen=True, slots=True)
class _Adapter:
    config: peft.LoraConfig
    tensors: dict[str, Tensor]  # by the module's name and the rest, without PEFT's prefix
    weight: float


class MergedWeights(WeightSource):
    """Weights of another source with adapters merged: fp32, rounded once to the stored dtype.

    Each adapted module is built alone, under its full name, and handed to PEFT: its initialisation,
    patterns and scaling are what is merged.

    Args:
        adapters: path and weight of each, in their order.
    """

    def __init__(self, source: WeightSource, adapters: Sequence[Mapping[str, str | float]]) -> None:
        self._source = source
        self.reader = f"{source.reader}, peft {peft.__version__}"
        self.independent = source.independent
        self._adapters = [_read(Path(str(one["path"])), float(one["weight"])) for one in adapters]

    def weight(self, name: str) -> Tensor:
        """See `WeightSource.weight`."""
        return self._merged(name, self._source.weight(name), None)

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """See `WeightSource.rows`."""
        return self._merged(name, self._source.rows(name, rows), rows)

    def _merged(self, name: str, values: Tensor, rows: Sequence[int] | None) -> Tensor:
        module = name.removesuffix(".weight")
        total = values
        for adapter in self._adapters:
            # A layer that was trained whole, or that PEFT stored beside its adapter.
            for key in (f"{module}.weight", f"{module}.base_layer.weight"):
                if key in adapter.tensors:
                    stored = adapter.tensors[key]
                    total = stored if rows is None else stored[list(rows)]
            tensors = {
                key: tensor
                for key, tensor in adapter.tensors.items()
                if key.startswith(f"{module}.lora_")
            }
            if tensors:
                total = _merge(module, total.float(), adapter, _of_rows(tensors, rows))
        return total.to(values.dtype)


def _read(path: Path, weight: float) -> _Adapter:
    config = peft.LoraConfig.from_pretrained(str(path))
    config.inference_mode = True
    stored = load_file(path / "adapter_model.safetensors")
    tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in stored.items()}
    return _Adapter(config, tensors, weight)


def _of_rows(tensors: dict[str, Tensor], rows: Sequence[int] | None) -> dict[str, Tensor]:
    """An adapter's tensors for some rows of its weight."""
    if rows is None:
        return tensors
    kept = list(rows)
    found = dict(tensors)
    for key, tensor in tensors.items():
        if ".lora_B" in key:
            found[key] = tensor[kept]
        elif ".lora_embedding_A" in key:
            found[key] = tensor[:, kept]
    return found


def _merge(module: str, values: Tensor, adapter: _Adapter, tensors: dict[str, Tensor]) -> Tensor:
    """A weight (N, K), fp32, with one adapter merged by PEFT."""
    holder = _holder(module, values, embedding=any("lora_embedding" in key for key in tensors))
    try:
        peft.inject_adapter_in_model(adapter.config, holder, adapter_name=_NAME)
        outcome = peft.set_peft_model_state_dict(holder, dict(tensors), adapter_name=_NAME)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(f"PEFT refuses the adapter of {module}: {error}") from error
    layer = holder.get_submodule(module)
    if not isinstance(layer, BaseTunerLayer) or outcome.unexpected_keys:
        raise CheckpointError(f"PEFT must merge the adapter of {module}, but does not take it.")
    layer.scale_layer(adapter.weight)
    layer.merge()
    merged: Tensor = layer.get_base_layer().weight.detach()
    return merged


def _holder(module: str, values: Tensor, *, embedding: bool) -> nn.Module:
    """A module tree that holds one layer under its full name."""
    layer: nn.Module
    with torch.device("meta"):
        layer = (
            nn.Embedding(*values.shape)
            if embedding
            else nn.Linear(values.shape[1], values.shape[0], bias=False)
        )
    layer.load_state_dict({"weight": values.clone()}, assign=True)
    root: Any = nn.Module()
    *parents, leaf = module.split(".")
    where = root
    for name in parents:
        child = nn.Module()
        where.add_module(name, child)
        where = child
    where.add_module(leaf, layer)
    holder: nn.Module = root
    return holder
