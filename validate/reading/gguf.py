"""GGUF files: read and dequantised by the gguf package, named and turned around by transformers."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.modeling_gguf_pytorch_utils import (
    LlamaTensorProcessor,
    get_gguf_hf_weights_map,
)

from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError

from .source import WeightSource


class GgufWeights(WeightSource):
    """Weights of one .gguf file.

    Args:
        model: transformers' model on the meta device, whose parameters are named.
    """

    def __init__(
        self, path: Path, config: ModelConfig, dtypes: dict[str, torch.dtype], model: Any
    ) -> None:
        self.dtypes = dtypes
        self.reader = f"gguf {version('gguf')}, transformers {transformers.__version__}"
        self._processor = LlamaTensorProcessor(
            config={
                "num_attention_heads": config.num_heads,
                "num_key_value_heads": config.num_kv_heads,
            }
        )
        names = get_gguf_hf_weights_map(model, self._processor, "llama", config.num_layers)
        self._tensors = {
            names.get(tensor.name, tensor.name): tensor
            for tensor in gguf.GGUFReader(path, "r").tensors
        }

    def weight(self, name: str) -> Tensor:
        """See `WeightSource.weight`."""
        tensor = self._tensor(name)
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        turned = self._processor.process(weights=values, name=tensor.name).weights
        return self._as_bundle(name, np.ascontiguousarray(turned))

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """See `WeightSource.rows`."""
        tensor = self._tensor(name)
        data = tensor.data.reshape(int(tensor.shape[-1]), -1)  # GGUF states shapes backwards
        chosen = np.ascontiguousarray(data[list(rows)])
        return self._as_bundle(name, gguf.dequantize(chosen, tensor.tensor_type))

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise CheckpointError(f"gguf and transformers must find {name}, got no such tensor.")
        return self._tensors[name]

    def _as_bundle(self, name: str, values: Any) -> Tensor:
        return torch.from_numpy(np.array(values, np.float32)).to(self.dtypes[name])
