"""Paged causal prefill: a chunk of each row's tokens against all that its pages hold."""

import triton
import triton.language as tl

from .tile import attend


@triton.jit
def prefill(
    query,  # (rows, heads, tokens, HEAD_DIM), by strides
    keys,
    values,
    table,  # (rows, table_stride) int32
    starts,  # (rows,) int32: the position of a row's first query
    lengths,  # (rows,) int32: tokens held, the new ones included; 0 for an idle row
    out,  # like query, by strides of its own
    tokens,
    table_stride,
    row_stride,
    head_stride,
    token_stride,
    out_row_stride,
    out_head_stride,
    out_token_stride,
    scale,  # of the scores: softmax's, the keys', log2(e)
    value_scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,  # a tile's: QUERIES / GROUP tokens, each with all heads of the group
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One tile of queries of one kv head; queries past a row's end get zeros."""
    # The last tokens see most: their tiles start first.
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head, row = tl.program_id(1), tl.program_id(2)
    start, length = tl.load(starts + row), tl.load(lengths + row)
    one, channel = chunk * QUERIES + tl.arange(0, QUERIES), tl.arange(0, DIM)
    token, head = one // GROUP, kv_head * GROUP + one % GROUP
    in_head = (channel < HEAD_DIM)[None, :]
    spot = row * row_stride + head * head_stride + token * token_stride
    tensor = tl.load(
        query + spot[:, None] + channel[None, :],
        mask=(token < tokens)[:, None] & in_head,
        other=0.0,
    )
    if keys.dtype.element_ty == tl.float8e4nv:
        tensor = tensor.to(tl.float16)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    total = tl.zeros([QUERIES, DIM], tl.float32)
    visible = start + token
    earliest = start + chunk * QUERIES // GROUP  # the tile's first token
    end = tl.minimum(length, start + (chunk * QUERIES + QUERIES - 1) // GROUP + 1)
    end = tl.where(earliest < length, end, 0)
    whole = tl.minimum(end, earliest + 1) // TILE * TILE  # what every query sees
    pages = table + row * table_stride
    largest, weight, total = attend(
        tensor, keys, values, pages, largest, weight, total, 0, whole, visible, kv_head,
        scale, KV_HEADS, HEAD_DIM, DIM, PAGE, TILE, False,
    )  # fmt: skip
    largest, weight, total = attend(
        tensor, keys, values, pages, largest, weight, total, whole, end, visible, kv_head,
        scale, KV_HEADS, HEAD_DIM, DIM, PAGE, TILE, True,
    )  # fmt: skip
    real = (token < tokens) & (visible < length)
    share = tl.where(real & (weight > 0), value_scale / tl.where(weight > 0, weight, 1.0), 0.0)
    spot = row * out_row_stride + head * out_head_stride + token * out_token_stride
    tl.store(
        out + spot[:, None] + channel[None, :],
        (total * share[:, None]).to(out.dtype.element_ty),
        mask=(token < tokens)[:, None] & in_head,
    )
