"""The traceable decoder: one definition for every precision, its parameters named canonically."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nemo_trt.config import ModelConfig
from nemo_trt.quantization import LM_HEAD

from . import ops


class Step(NamedTuple):
    """What every layer of one step shares: where its tokens go and how they are rotated."""

    write_indices: Tensor  # (B,)
    lengths: Tensor  # (B,) valid keys after the update
    cos: Tensor  # (B, S, D/2)
    sin: Tensor  # (B, S, D/2)


class Norm(nn.Module):
    """RMSNorm over the model dim."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, dtype=dtype))
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C)
        normal: Tensor = ops.rms_norm(x, self.weight, self.eps)
        return normal


class Linear(nn.Module):
    """A projection without bias, its weight [N, K] as checkpoints store it."""

    def __init__(self, in_size: int, out_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.t())


class Fp8Linear(nn.Module):
    """A projection whose weight is E4M3: W8A8 behind the `Quantizer` of its input.

    It computes what an FP8 product with fp32 accumulation does, rounding for rounding.
    """

    def __init__(
        self, in_size: int, out_size: int, dtype: torch.dtype, *, per_channel: bool
    ) -> None:
        super().__init__()
        weight = torch.empty(out_size, in_size, dtype=torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty((out_size,) * per_channel, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, ops.dequantize(self.weight, self.weight_scale).t())


class Quantizer(nn.Module):
    """Rounds a group's input to E4M3 with a static scale."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty((), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = ops.quantize_dequantize(x, self.scale)
        return rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Which products compute in what.

    Attributes:
        dtype: of activations, norms, caches and all products that are not FP8.
        fp8_groups: groups (`nemo_trt.quantization.groups`) whose products are FP8.
        per_channel: their weights have a scale a row, not one a tensor.
    """

    dtype: torch.dtype
    fp8_groups: frozenset[str] = frozenset()
    per_channel: bool = False

    def linear(self, group: str, in_size: int, out_size: int) -> nn.Module:
        """A projection of a group."""
        if group in self.fp8_groups:
            return Fp8Linear(in_size, out_size, self.dtype, per_channel=self.per_channel)
        return Linear(in_size, out_size, self.dtype)

    def quantizer(self, group: str) -> nn.Module:
        """What a group's input goes through."""
        return Quantizer(self.dtype) if group in self.fp8_groups else nn.Identity()


class SelfAttention(nn.Module):
    """Grouped-query attention over an in-place cache."""

    def __init__(self, config: ModelConfig, numerics: Numerics, name: str) -> None:
        super().__init__()
        self.config = config
        qkv, out = f"{name}.qkv", f"{name}.o"
        self.qkv_input = numerics.quantizer(qkv)
        self.q_proj = numerics.linear(qkv, config.hidden_size, config.query_size)
        self.k_proj = numerics.linear(qkv, config.hidden_size, config.kv_size)
        self.v_proj = numerics.linear(qkv, config.hidden_size, config.kv_size)
        self.o_input = numerics.quantizer(out)
        self.o_proj = numerics.linear(out, config.query_size, config.hidden_size)
        self.stored_key, self.stored_value = nn.Identity(), nn.Identity()  # calibration hooks here

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        width, heads, kv_heads = (
            self.config.head_dim,
            self.config.num_heads,
            self.config.num_kv_heads,
        )
        x = self.qkv_input(x)
        # q and k are rotated as one: TensorRT then needs a kernel a layer less.
        every = heads + kv_heads
        both = ops.split_heads(torch.cat((self.q_proj(x), self.k_proj(x)), dim=-1), every, width)
        rotated = ops.rotary(both, step.cos, step.sin)  # (B, H + K, S, D)
        query = ops.take_heads(rotated, 0, heads)  # (B, H, S, D)
        key = ops.take_heads(rotated, heads, every)  # (B, K, S, D)
        value = ops.split_heads(self.v_proj(x), kv_heads, width)  # (B, K, S, D)
        key, value = self.stored_key(key), self.stored_value(value)
        keys = ops.cache_update(past[0], key, step.write_indices)  # (B, K, T, D)
        values = ops.cache_update(past[1], value, step.write_indices)  # (B, K, T, D)
        mixed = ops.attention(query, keys, values, step.lengths, self.config.softmax_scale)
        return self.o_proj(self.o_input(ops.merge_heads(mixed))), keys, values


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, numerics: Numerics, name: str) -> None:
        super().__init__()
        hidden, ffn = config.hidden_size, config.intermediate_size
        self.gate_up_input = numerics.quantizer(f"{name}.gate_up")
        self.gate_proj = numerics.linear(f"{name}.gate_up", hidden, ffn)
        self.up_proj = numerics.linear(f"{name}.gate_up", hidden, ffn)
        self.down_input = numerics.quantizer(f"{name}.down")
        self.down_proj = numerics.linear(f"{name}.down", ffn, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate_up_input(x)
        gate = self.gate_proj(x)
        gated = gate * torch.sigmoid(gate) * self.up_proj(x)  # (B, S, F)
        output: Tensor = self.down_proj(self.down_input(gated))
        return output


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig, numerics: Numerics, index: int) -> None:
        super().__init__()
        name = f"model.layers.{index}"
        self.input_layernorm = Norm(config, numerics.dtype)
        self.self_attn = SelfAttention(config, numerics, f"{name}.self_attn")
        self.post_attention_layernorm = Norm(config, numerics.dtype)
        self.mlp = Mlp(config, numerics, f"{name}.mlp")

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, keys, values = self.self_attn(self.input_layernorm(x), past, step)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Backbone(nn.Module):
    """Embedding, layers and final norm, under the names that checkpoints use."""

    def __init__(self, config: ModelConfig, numerics: Numerics) -> None:
        super().__init__()
        dtype = numerics.dtype
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        layers = (Layer(config, numerics, index) for index in range(config.num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config, dtype)


class Decoder(nn.Module):
    """The model as the graph contract states it (`nemo_trt.contract`).

    `named_parameters()` are exactly `config.tensors()`, and the scales of FP8 groups.
    """

    def __init__(self, config: ModelConfig, numerics: Numerics) -> None:
        super().__init__()
        self.config, self.dtype = config, numerics.dtype
        self.model = Backbone(config, numerics)
        if not config.tied_head:
            self.lm_head_input = numerics.quantizer(LM_HEAD)
            self.lm_head = numerics.linear(LM_HEAD, config.hidden_size, config.vocab_size)

    def step(self, write_indices: Tensor, new_tokens: int) -> Step:
        """Angles of the new tokens' positions, computed in fp32, and lengths after the update."""
        positions = write_indices.unsqueeze(1) + torch.arange(new_tokens)  # (B, S)
        frequencies = ops.inverse_frequencies(
            self.config.rope_theta, self.config.head_dim, write_indices
        )
        angles = positions.float().unsqueeze(-1) * frequencies  # (B, S, D/2)
        cos, sin = torch.cos(angles).to(self.dtype), torch.sin(angles).to(self.dtype)
        return Step(write_indices, write_indices + new_tokens, cos, sin)

    def forward(
        self,
        input_ids: Tensor,  # (B, S)
        write_indices: Tensor,  # (B,)
        logit_indices: Tensor,  # (B, N)
        past: Sequence[Tensor],  # 2L of (B, K, T, D): key and value of layer 0, of layer 1, ...
    ) -> tuple[Tensor, list[Tensor]]:
        x = self.model.embed_tokens(input_ids)  # (B, S, C)
        step = self.step(write_indices, input_ids.shape[1])
        present: list[Tensor] = []
        for index, layer in enumerate(self.model.layers):
            caches = past[2 * index], past[2 * index + 1]
            x, keys, values = layer(x, caches, step)
            present += (keys, values)
        x = ops.take_positions(self.model.norm(x), logit_indices)  # (B, N, C)
        if self.config.tied_head:
            logits = torch.matmul(x, self.model.embed_tokens.weight.t())
        else:
            logits = self.lm_head(self.lm_head_input(x))
        return logits.float(), present  # (B, N, V)
