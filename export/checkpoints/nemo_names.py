"""Megatron-core's tensors under canonical names: fused q/k/v and gate/up split, layers unstacked.

Layout of linear_qkv: for each kv group its query heads, its key head, its value head. Rows are in
half-split order already. linear_fc1 is gate above up. Source: NVIDIA NeMo's Mistral converter and
Megatron-LM's attention.py and mlp.py.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError
from nemo_trt.tensors import LazyTensor

from .derived import gathered, joined, row_range, unstacked

_PREFIX = re.compile(r"^((model|module)\.)+")
_LAYERS = "decoder.layers."
EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"
QKV = "self_attention.linear_qkv.weight"
FC1 = "mlp.linear_fc1.weight"
PROJ = "self_attention.linear_proj.weight"
FC2 = "mlp.linear_fc2.weight"
_LEAVES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    PROJ: "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    FC2: "mlp.down_proj.weight",
}
_LOCAL_SHARDS = (f"{FC1}_w", f"{FC1}_v")  # gate and up, of Megatron's singleton_local_shards


def mcore_names(tensors: Mapping[str, LazyTensor], where: str) -> dict[str, LazyTensor]:
    """Tensors by Megatron-core's names, layers apart: `decoder.layers.N.` and the rest.

    Prefixes of NeMo are dropped, stacks of layers taken apart; what is no weight of the model
    (`_extra_state` of Transformer Engine, the optimizer) is left out by name.

    Raises:
        CheckpointError: a name stands twice, or belongs to a model of before Megatron-core.
    """
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = _PREFIX.sub("", key)
        if "._extra_state" in name or name.startswith("optimizer"):
            continue
        if name.startswith("language_model."):
            raise CheckpointError(
                f"{where} holds {key}, a name of NeMo models before Megatron-core. Convert it with "
                "NeMo (mcore_gpt=True) first."
            )
        parts = name.removeprefix(_LAYERS)
        if name == parts or parts.split(".", 1)[0].isdigit():
            named = [(name, tensor)]
        else:  # a stack of all layers
            named = [
                (f"{_LAYERS}{layer}.{parts}", unstacked(tensor, layer))
                for layer in range(tensor.shape[0])
            ]
        for one, part in named:
            if one in found:
                raise CheckpointError(f"{where} holds {one} twice.")
            found[one] = part
    return found


def head_dim_of(tensors: Mapping[str, LazyTensor], num_heads: int, groups: int, where: str) -> int:
    """The head dimension by the rows of the first linear_qkv: heads and two per group.

    Raises:
        CheckpointError: there is no such tensor, or its rows are no multiple.
    """
    qkv = tensors.get(f"{_LAYERS}0.{QKV}")
    if qkv is None:
        raise CheckpointError(f"{where} lacks {_LAYERS}0.{QKV}.")
    head_dim, rest = divmod(qkv.shape[0], num_heads + 2 * groups)
    if rest or not head_dim:
        raise CheckpointError(
            f"{_LAYERS}0.{QKV} in {where} must have a multiple of {num_heads + 2 * groups} rows "
            f"(heads and two for each of {groups} groups), got {qkv.shape[0]}."
        )
    return head_dim


def canonical(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, where: str
) -> dict[str, LazyTensor]:
    """What `mcore_names` gave, under canonical names.

    Raises:
        CheckpointError: a tensor has no place in this model, or too few rows for it.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in _all(tensors, config, where):
        if name in found:
            raise CheckpointError(f"{where} holds two tensors for {name}.")
        found[name] = replace(tensor, name=name)
    return found


def _all(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, where: str
) -> Iterator[tuple[str, LazyTensor]]:
    qkv = qkv_index(config)
    for name, tensor in _without_local_shards(tensors, where).items():
        if name in (EMBEDDING, HEAD):
            target = "model.embed_tokens.weight" if name == EMBEDDING else "lm_head.weight"
            yield target, _unpadded(name, tensor, config.vocab_size, where)
        elif name in ("decoder.final_layernorm.weight", "decoder.final_norm.weight"):
            yield "model.norm.weight", tensor
        else:
            yield from _of_layer(name, tensor, config, qkv, where)


def _of_layer(
    name: str,
    tensor: LazyTensor,
    config: ModelConfig,
    qkv: Mapping[str, NDArray[np.int64]],
    where: str,
) -> Iterator[tuple[str, LazyTensor]]:
    layer, _, leaf = name.removeprefix(_LAYERS).partition(".")
    target = f"model.layers.{layer}"
    if not (name.startswith(_LAYERS) and layer.isdigit()):
        raise CheckpointError(f"{where} holds {name}, which a model of this family does not have.")
    if leaf in _LEAVES:
        yield f"{target}.{_LEAVES[leaf]}", tensor
    elif leaf == QKV:
        _require_rows(name, tensor, sum(map(len, qkv.values())), where)
        for projection, index in qkv.items():
            yield f"{target}.self_attn.{projection}.weight", gathered(name, tensor, index)
    elif leaf == FC1:
        half = config.intermediate_size
        _require_rows(name, tensor, 2 * half, where)
        yield f"{target}.mlp.gate_proj.weight", row_range(name, tensor, 0, half)
        yield f"{target}.mlp.up_proj.weight", row_range(name, tensor, half, 2 * half)
    else:
        raise CheckpointError(f"{where} holds {name}, which a model of this family does not have.")


def qkv_index(config: ModelConfig) -> dict[str, NDArray[np.int64]]:
    """The rows of linear_qkv that make up each projection, in its own order."""
    each, size = config.num_heads // config.num_kv_heads, config.head_dim
    rows = np.arange((each + 2) * config.num_kv_heads * size, dtype=np.int64)
    grouped = rows.reshape(config.num_kv_heads, each + 2, size)
    return {
        "q_proj": grouped[:, :each].reshape(-1),
        "k_proj": grouped[:, each].reshape(-1),
        "v_proj": grouped[:, each + 1].reshape(-1),
    }


def _without_local_shards(
    tensors: Mapping[str, LazyTensor], where: str
) -> Mapping[str, LazyTensor]:
    """Gate and up that are kept under two names, joined."""
    found = dict(tensors)
    for name in tensors:
        if name.endswith(_LOCAL_SHARDS[0]):
            other = name.removesuffix("_w") + "_v"
            if other not in tensors:
                raise CheckpointError(f"{where} holds {name} but not {other}.")
            whole = name.removesuffix("_w")
            found[whole] = joined(whole, [found.pop(name), found.pop(other)], 0, where)
    return found


def _unpadded(name: str, tensor: LazyTensor, rows: int, where: str) -> LazyTensor:
    """Megatron pads a vocabulary up to a multiple; the rows behind it are no tokens."""
    if tensor.shape[0] < rows:
        raise CheckpointError(
            f"{name} in {where} must have {rows} rows, one a token, got {tensor.shape[0]}."
        )
    return tensor if tensor.shape[0] == rows else row_range(name, tensor, 0, rows)


def _require_rows(name: str, tensor: LazyTensor, rows: int, where: str) -> None:
    if tensor.shape[0] != rows:
        raise CheckpointError(
            f"{name} in {where} must have {rows} rows by the config, got {tensor.shape[0]}."
        )
