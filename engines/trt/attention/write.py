"""New keys and values into their pages, in the cache's own dtype."""

import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def stored(tensor, scale, pool):
    """`tensor` as the pool holds it: over its scale, rounded once, kept within E4M3's range."""
    dtype: tl.constexpr = pool.dtype.element_ty
    if dtype == tl.float8e4nv:
        scaled = tl.div_rn(tensor.to(tl.float32), scale)
        bounded = tl.clamp(scaled, -E4M3_MAX, E4M3_MAX, propagate_nan=tl.PropagateNan.ALL)
        return bounded.to(dtype)
    return tensor.to(dtype)


@triton.jit
def write(
    new_keys,  # (rows, KV_HEADS, tokens, HEAD_DIM), by strides
    new_values,  # likewise
    keys,  # the layer's pool (pages, KV_HEADS, PAGE, HEAD_DIM)
    values,
    table,  # (rows, table_stride) int32
    starts,  # (rows,) int32: the position of a row's first new token
    lengths,  # (rows,) int32: tokens held, the new ones included; 0 for an idle row
    tokens,
    table_stride,
    row_stride,
    head_stride,
    token_stride,
    key_scale,
    value_scale,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,  # a program's
):
    """Some tokens of one head of one row; padding, at or past the row's length, goes nowhere."""
    kv_head, row = tl.program_id(1), tl.program_id(2)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, DIM)
    position = tl.load(starts + row) + token
    real = (token < tokens) & (position < tl.load(lengths + row))
    page = tl.load(table + row * table_stride + position // PAGE, mask=real, other=0).to(tl.int64)
    slot = (page * KV_HEADS + kv_head) * PAGE + position % PAGE
    mask = real[:, None] & (channel < HEAD_DIM)[None, :]
    source = row * row_stride + kv_head * head_stride + token * token_stride
    source = source[:, None] + channel[None, :]
    target = slot[:, None] * HEAD_DIM + channel[None, :]
    key = tl.load(new_keys + source, mask=mask, other=0.0)
    value = tl.load(new_values + source, mask=mask, other=0.0)
    tl.store(keys + target, stored(key, key_scale, keys), mask=mask)
    tl.store(values + target, stored(value, value_scale, values), mask=mask)
