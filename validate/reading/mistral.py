"""Mistral's own files: safetensors reads them, transformers turns q and k around.

transformers' permutation is the operation that its conversions of Mistral checkpoints use
(`transformers.core_model_loading.PermuteForRope`). The names are Mistral's:
https://github.com/mistralai/mistral-inference, transformer_layers.py.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor
from transformers.core_model_loading import PermuteForRope

from nemo_trt.config import ModelConfig

from .huggingface import SafetensorsWeights, names_in
from .source import WeightSource

_OUTER = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


class MistralWeights(WeightSource):
    """Weights of consolidated*.safetensors under Hugging Face names, q and k in its order."""

    def __init__(self, path: Path, config: ModelConfig, dtypes: dict[str, torch.dtype]) -> None:
        self.config = config
        files = names_in(*sorted(path.glob("consolidated*.safetensors")))
        scales = {
            name.replace(".qscale_weight", ".weight_scale"): file
            for name, file in files.items()
            if name.endswith(".qscale_weight")
        }
        self._scale_names = {
            name: name.replace(".weight_scale", ".qscale_weight") for name in scales
        }
        native = {native_name(name): dtype for name, dtype in dtypes.items()}
        self._stored = _Native(files | scales, native, self._scale_names)
        self.reader = f"{self._stored.reader}, transformers {transformers.__version__}"

    def weight(self, name: str) -> Tensor:
        """See `WeightSource.weight`."""
        values = self._stored.weight(native_name(name))
        heads = {
            "q_proj.weight": self.config.num_heads,
            "k_proj.weight": self.config.num_kv_heads,
        }.get(name.rsplit("self_attn.", 1)[-1])
        if heads is None:
            return values
        turned = PermuteForRope().convert(
            {name: values}, [name], [name], SimpleNamespace(num_attention_heads=heads)
        )
        found: Tensor = turned[name]
        return found.contiguous()

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """See `WeightSource.rows`."""
        return self._stored.rows(native_name(name), rows)


class _Native(SafetensorsWeights):
    """Mistral calls the scale of an FP8 weight qscale_weight."""

    def __init__(
        self, files: dict[str, Path], dtypes: dict[str, torch.dtype], renamed: dict[str, str]
    ) -> None:
        super().__init__(files, dtypes)
        self._renamed = renamed

    def _scale(self, stored: str, values: Tensor, rows: Sequence[int] | None) -> Tensor:
        name = self._renamed[f"{stored}_scale"]
        scale: Tensor = self._file(name).get_tensor(name).float()
        if scale.numel() == 1:
            return scale.reshape(())
        return scale.reshape(-1, 1) if rows is None else scale.reshape(-1, 1)[list(rows)]


def native_name(name: str) -> str:
    """Mistral's name of a weight that Hugging Face calls `name`."""
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, leaf = name.removesuffix(".weight").split(".", 3)
    return f"layers.{layer}.{_INNER[leaf]}.weight"
