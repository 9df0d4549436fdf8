"""The places at which a bundle's graph and transformers' modules are compared."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]
Part = int | str
"""A layer's index, "embedding" or "head"."""
Watch = Callable[[Part, dict[str, Array]], None]
"""Called with a part and what it computed: place -> values."""

COS, SIN = "rotary.cos", "rotary.sin"
EMBEDDING, NORM, LOGITS = "embed_tokens", "norm", "lm_head"
HIDDEN = "input"
"""What a layer, or the final norm, is given."""


@dataclass(frozen=True, slots=True)
class Place:
    """One value of a layer.

    Attributes:
        name: as a checkpoint names the module, `self_attn.k_proj`.
        value: its name in the graph; `{layer}` stands for `model.layers.7`, `{index}` for 7.
        heads: "query" or "kv" where its channels are heads: shown in words.
    """

    name: str
    value: str
    heads: str | None = None


LAYER_PLACES = (
    Place("input_layernorm", "{layer}.input_layernorm.RMSNormalization"),
    Place("self_attn.q_proj", "{layer}.self_attn.q_proj.MatMul", "query"),
    Place("self_attn.k_proj", "{layer}.self_attn.k_proj.MatMul", "kv"),
    Place("self_attn.v_proj", "{layer}.self_attn.v_proj.MatMul", "kv"),
    Place("self_attn.rotated_q", "{layer}.self_attn.Slice", "query"),
    Place("self_attn.rotated_k", "{layer}.self_attn.Slice_2", "kv"),
    Place("self_attn.key_cache", "present.{index}.key", "kv"),
    Place("self_attn.value_cache", "present.{index}.value", "kv"),
    Place("self_attn.attention", "{layer}.self_attn.Reshape_3", "query"),
    Place("self_attn.o_proj", "{layer}.self_attn.o_proj.MatMul"),
    Place("residual", "{layer}.Add"),
    Place("post_attention_layernorm", "{layer}.post_attention_layernorm.RMSNormalization"),
    Place("mlp.gate_proj", "{layer}.mlp.gate_proj.MatMul"),
    Place("mlp.up_proj", "{layer}.mlp.up_proj.MatMul"),
    Place("mlp.swiglu", "{layer}.mlp.Mul_2"),
    Place("mlp.down_proj", "{layer}.mlp.down_proj.MatMul"),
    Place("output", "{layer}.Add_2"),
)
"""In the order in which a layer computes them."""


def values_of(layer: int) -> dict[str, str]:
    """Place -> the name of its value in the graph, of one layer."""
    module = f"model.layers.{layer}"
    return {one.name: one.value.format(layer=module, index=layer) for one in LAYER_PLACES}


@contextmanager
def watched(layer: Any, seen: dict[str, Array]) -> Iterator[None]:
    """Put into `seen` what transformers' decoder layer computes at each place, and its input.

    Shapes are those of the graph: (1, S, C), and (1, heads, S, D) once heads are split. The caches
    are the caller's to add.
    """

    def keep(name: str, tensor: Tensor) -> None:
        seen[name] = tensor.detach().float().cpu().numpy()

    def output(module: Any, name: str) -> Any:
        return module.register_forward_hook(lambda _m, _args, out: keep(name, out))

    def before(module: Any, name: str) -> Any:
        return module.register_forward_pre_hook(lambda _m, args: keep(name, args[0]))

    attention, mlp = layer.self_attn, layer.mlp
    with ExitStack() as hooks:
        for handle in (
            before(layer.input_layernorm, HIDDEN),
            output(layer.input_layernorm, "input_layernorm"),
            *(
                output(getattr(attention, name), f"self_attn.{name}")
                for name in ("q_proj", "k_proj", "v_proj", "o_proj")
            ),
            before(attention.o_proj, "self_attn.attention"),
            before(layer.post_attention_layernorm, "residual"),
            output(layer.post_attention_layernorm, "post_attention_layernorm"),
            output(mlp.gate_proj, "mlp.gate_proj"),
            output(mlp.up_proj, "mlp.up_proj"),
            before(mlp.down_proj, "mlp.swiglu"),
            output(mlp.down_proj, "mlp.down_proj"),
            output(layer, "output"),
        ):
            hooks.callback(handle.remove)
        yield


def rotate(layer: Any, seen: dict[str, Array], angles: tuple[Tensor, Tensor]) -> None:
    """Add the rotated queries and keys, by the layer's own module's function."""
    rotary = sys.modules[type(layer).__module__].apply_rotary_pos_emb
    width = layer.self_attn.head_dim

    def heads(name: str) -> Tensor:
        flat = torch.from_numpy(seen[name])
        return flat.view(*flat.shape[:2], -1, width).transpose(1, 2)

    query, key = heads("self_attn.q_proj"), heads("self_attn.k_proj")
    rotated = rotary(query, key, *(one.float().cpu() for one in angles))
    seen["self_attn.rotated_q"], seen["self_attn.rotated_k"] = (one.numpy() for one in rotated)
