"""The traceable decoder: one definition for every precision, its parameters named canonically."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nemo_trt.config import ModelConfig

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


class SelfAttention(nn.Module):
    """Grouped-query attention over an in-place cache."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.q_proj = Linear(config.hidden_size, config.query_size, dtype)
        self.k_proj = Linear(config.hidden_size, config.kv_size, dtype)
        self.v_proj = Linear(config.hidden_size, config.kv_size, dtype)
        self.o_proj = Linear(config.query_size, config.hidden_size, dtype)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        width, kv_heads = self.config.head_dim, self.config.num_kv_heads
        query = ops.split_heads(self.q_proj(x), self.config.num_heads, width)  # (B, H, S, D)
        key = ops.split_heads(self.k_proj(x), kv_heads, width)  # (B, K, S, D)
        value = ops.split_heads(self.v_proj(x), kv_heads, width)  # (B, K, S, D)
        query, key = ops.rotate(query, key, step.cos, step.sin)
        query = query * ops.query_scale(width)
        keys = ops.cache_update(past[0], key, step.write_indices)  # (B, K, T, D)
        values = ops.cache_update(past[1], value, step.write_indices)  # (B, K, T, D)
        mixed = ops.attention(query, keys, values, step.lengths)
        return self.o_proj(ops.merge_heads(mixed)), keys, values


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, dtype)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, dtype)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, dtype)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        output: Tensor = self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))
        return output


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = Norm(config, dtype)
        self.self_attn = SelfAttention(config, dtype)
        self.post_attention_layernorm = Norm(config, dtype)
        self.mlp = Mlp(config, dtype)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, keys, values = self.self_attn(self.input_layernorm(x), past, step)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Backbone(nn.Module):
    """Embedding, layers and final norm, under the names that checkpoints use."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(Layer(config, dtype) for _ in range(config.num_layers))
        self.norm = Norm(config, dtype)


class Decoder(nn.Module):
    """The model as the graph contract states it (`nemo_trt.contract`).

    `named_parameters()` are exactly `config.tensors()`, all of the compute dtype.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.model = Backbone(config, dtype)
        if not config.tied_head:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, dtype)

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
            logits = self.lm_head(x)
        return logits.float(), present  # (B, N, V)
