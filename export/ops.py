"""The decoder's library ops: each has a real eager meaning and a one-line ONNX translation.

`torch.export` keeps them whole, so the ONNX graph says `Attention` where the decoder does. The ONNX
meaning of each is https://onnx.ai/onnx/operators/ at opset 24.
"""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.onnx_opset import opset24 as onnx_op
from torch import Tensor
from torch.library import custom_op

from nemo_trt.e4m3 import E4M3_MAX
from nemo_trt.precision import DType

NAMESPACE = "nemo_trt"


@custom_op(f"{NAMESPACE}::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of (..., C) in fp32, rounded to x's dtype, then scaled."""
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normal.to(x.dtype) * weight


@custom_op(f"{NAMESPACE}::inverse_frequencies", mutates_args=())
def inverse_frequencies(theta: float, head_dim: int, like: Tensor) -> Tensor:
    """RoPE frequencies (D/2,) in fp32; `like` only tells the device."""
    return torch.tensor(_frequencies(theta, head_dim), dtype=torch.float32, device=like.device)


@custom_op(f"{NAMESPACE}::rotary", mutates_args=())
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves of (B, heads, S, D) by (B, S, D/2) angles, as Hugging Face lays q and k out."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@custom_op(f"{NAMESPACE}::take_heads", mutates_args=())
def take_heads(x: Tensor, start: int, stop: int) -> Tensor:
    """The heads `start` to `stop` of (B, heads, S, D)."""
    return x[:, start:stop].clone()


@custom_op(f"{NAMESPACE}::cache_update", mutates_args=())
def cache_update(past: Tensor, new: Tensor, write_indices: Tensor) -> Tensor:
    """Write (B, K, S, D) into a copy of the (B, K, T, D) cache from each row's write index on."""
    present = past.clone()
    for row, start in enumerate(write_indices.tolist()):
        present[row, :, start : start + new.shape[2]] = new[row]
    return present


@custom_op(f"{NAMESPACE}::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Causal attention, aligned to each row's last valid key.

    Args:
        query: (B, H, S, D).
        key: (B, K, T, D), H a multiple of K.
        value: (B, K, T, D).
        lengths: (B,) valid keys; query i of a row sees key j when j <= lengths - S + i.
        scale: of the scores, in fp32 (an attribute of the ONNX operator, so never rounded to the
            compute dtype).

    Returns:
        (B, H, S, D).
    """
    new_tokens, capacity = query.shape[2], key.shape[2]
    last_seen = (lengths - new_tokens)[:, None] + torch.arange(new_tokens, device=query.device)
    mask = torch.arange(capacity, device=query.device) <= last_seen[..., None]  # (B, S, T)
    groups = query.shape[1] // key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, dim=1),
        value.repeat_interleave(groups, dim=1),
        attn_mask=mask[:, None],
        scale=scale,
    )


@custom_op(f"{NAMESPACE}::split_heads", mutates_args=())
def split_heads(x: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """(B, S, heads * D) to (B, heads, S, D)."""
    return x.reshape(*x.shape[:2], num_heads, head_dim).transpose(1, 2).clone()


@custom_op(f"{NAMESPACE}::merge_heads", mutates_args=())
def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, S, D) to (B, S, heads * D)."""
    return x.transpose(1, 2).flatten(2).clone()


@custom_op(f"{NAMESPACE}::take_positions", mutates_args=())
def take_positions(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of (B, S, C) at (B, N) positions: (B, N, C)."""
    return torch.take_along_dim(x, indices[..., None], dim=1)


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale in fp32, saturated and rounded to E4M3, to nearest, ties to even.

    Args:
        x: any float dtype and shape.
        scale: a scalar, or one a row of x as (N, 1).
    """
    ratio = x.float() / scale.float()
    return ratio.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


@custom_op(f"{NAMESPACE}::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor) -> Tensor:
    """x as it is after rounding to E4M3 with a scalar scale, in x's dtype."""
    return (to_e4m3(x, scale).float() * scale.float()).to(x.dtype)


@custom_op(f"{NAMESPACE}::dequantize", mutates_args=())
def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """An E4M3 weight (N, K) in its scale's dtype; the scale is a scalar or (N,), one a row."""
    wide = scale.float() if scale.dim() == 0 else scale.float()[:, None]
    return (weight.float() * wide).to(scale.dtype)


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@inverse_frequencies.register_fake
def _(theta: float, head_dim: int, like: Tensor) -> Tensor:
    return like.new_empty((head_dim // 2,), dtype=torch.float32)


@rotary.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x)


@take_heads.register_fake
def _(x: Tensor, start: int, stop: int) -> Tensor:
    return torch.empty_like(x[:, start:stop])


@cache_update.register_fake
def _(past: Tensor, new: Tensor, write_indices: Tensor) -> Tensor:
    return torch.empty_like(past)


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float) -> Tensor:
    return torch.empty_like(query)


@split_heads.register_fake
def _(x: Tensor, num_heads: int, head_dim: int) -> Tensor:
    return x.new_empty((x.shape[0], num_heads, x.shape[1], head_dim))


@merge_heads.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2], x.shape[1] * x.shape[3]))


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@dequantize.register_fake
def _(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=scale.dtype)


@take_positions.register_fake
def _(x: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], indices.shape[1], x.shape[2]))


def _frequencies(theta: float, head_dim: int) -> list[float]:
    """theta ** (-2i / D), rounded as fp32 arithmetic rounds it (so that references agree)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies: list[float] = (1.0 / (theta**exponents)).tolist()
    return frequencies


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Library op -> the function that writes its ONNX form, for `torch.onnx.export`."""
    ops = getattr(torch.ops, NAMESPACE)
    return {
        ops.rms_norm.default: lambda x, weight, eps: onnx_op.RMSNormalization(
            x, weight, axis=-1, epsilon=eps
        ),
        ops.inverse_frequencies.default: lambda theta, head_dim, like: onnx_op.Constant(
            value_floats=_frequencies(theta, head_dim)
        ),
        ops.rotary.default: lambda x, cos, sin: onnx_op.RotaryEmbedding(x, cos, sin),
        ops.take_heads.default: lambda x, start, stop: onnx_op.Slice(
            x, *(onnx_op.Constant(value_ints=[bound]) for bound in (start, stop, 1))
        ),
        ops.cache_update.default: lambda past, new, write_indices: onnx_op.TensorScatter(
            past, new, write_indices, axis=-2, mode="linear"
        ),
        ops.attention.default: lambda query, key, value, lengths, scale: onnx_op.Attention(
            query, key, value, None, None, None, lengths, is_causal=1, scale=scale
        )[0],
        ops.split_heads.default: lambda x, num_heads, head_dim: onnx_op.Transpose(
            onnx_op.Reshape(x, onnx_op.Constant(value_ints=[0, 0, num_heads, head_dim])),
            perm=[0, 2, 1, 3],
        ),
        ops.merge_heads.default: lambda x: onnx_op.Reshape(
            onnx_op.Transpose(x, perm=[0, 2, 1, 3]), onnx_op.Constant(value_ints=[0, 0, -1])
        ),
        ops.quantize_dequantize.default: lambda x, scale: onnx_op.DequantizeLinear(
            onnx_op.QuantizeLinear(x, scale, output_dtype=DType.FP8.onnx_code), scale
        ),
        ops.dequantize.default: lambda weight, scale: onnx_op.DequantizeLinear(
            weight, scale, axis=0
        ),
        ops.take_positions.default: lambda x, indices: onnx_op.GatherND(
            x, onnx_op.Unsqueeze(indices, onnx_op.Constant(value_ints=[-1])), batch_dims=1
        ),
    }
