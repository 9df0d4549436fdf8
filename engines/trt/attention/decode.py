"""Paged decode: the keys of all rows shared out evenly over a fixed number of programs.

Each (row, kv head) is a pair, and its keys are tiles. The tiles of all pairs form one line, and
each program takes an equal run of it. One long row keeps every program busy, as many short rows do,
and the grid does not depend on lengths, so a CUDA graph can hold it. A run is cut into segments
where one pair ends and the next begins. Along the line, program and pair never decrease and one of
them increases at each cut: program + pair is a segment's own number. `merge` combines those of a
pair.
"""

import triton
import triton.language as tl

from .tile import attend


@triton.jit
def decode(
    query,  # (rows, heads, TOKENS, HEAD_DIM), by strides
    keys,
    values,
    table,  # (rows, table_stride) int32
    starts,  # (rows,) int32: the position of a row's first query
    lengths,  # (rows,) int32: tokens held, the new ones included; 0 for an idle row
    partial,  # (programs + rows * KV_HEADS, TOKENS * GROUP, DIM) float32
    summary,  # (programs + rows * KV_HEADS, TOKENS * GROUP) float32
    rows,
    table_stride,
    row_stride,
    head_stride,
    token_stride,
    scale,  # of the scores: softmax's, the keys', log2(e)
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    QUERIES: tl.constexpr,  # TOKENS * GROUP, raised to a power of two that a product takes
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,  # rows, raised to a power of two
):
    """Softmax over each segment's keys: its weighted values, and log2 of its weight."""
    program = tl.program_id(0)
    index = tl.arange(0, ROWS)
    tiles = tl.cdiv(tl.load(lengths + index, mask=index < rows, other=0), TILE)
    until = tl.cumsum(tiles, 0) * KV_HEADS  # tiles up to and with each row
    all_tiles = tl.sum(tiles, 0) * KV_HEADS
    programs = tl.maximum(tl.minimum(tl.num_programs(0), all_tiles), 1)  # with anything to do
    work = program * all_tiles // programs
    stop = tl.where(program < programs, (program + 1) * all_tiles // programs, work)

    channel, one = tl.arange(0, DIM), tl.arange(0, QUERIES)
    token, head = one // GROUP, one % GROUP
    while work < stop:
        row = tl.sum((until <= work).to(tl.int32), 0)
        length = tl.load(lengths + row)
        of_pair = tl.cdiv(length, TILE)
        line = work - tl.sum(tl.where(index < row, tiles, 0), 0) * KV_HEADS
        kv_head = line // of_pair
        tile = line % of_pair
        taken = tl.minimum(of_pair - tile, stop - work)

        spot = row * row_stride + (kv_head * GROUP + head) * head_stride + token * token_stride
        asked = (one < TOKENS * GROUP)[:, None] & (channel < HEAD_DIM)[None, :]
        tensor = tl.load(query + spot[:, None] + channel[None, :], mask=asked, other=0.0)
        if keys.dtype.element_ty == tl.float8e4nv:
            tensor = tensor.to(tl.float16)
        visible = tl.load(starts + row) + token
        largest = tl.full([QUERIES], float("-inf"), tl.float32)
        weight = tl.zeros([QUERIES], tl.float32)
        total = tl.zeros([QUERIES, DIM], tl.float32)
        first, end = tile * TILE, tl.minimum((tile + taken) * TILE, length)
        # Tiles that every query sees whole need no mask.
        whole = tl.minimum(end, tl.load(starts + row) + 1) // TILE * TILE
        whole = tl.maximum(whole, first)
        pages = table + row * table_stride
        largest, weight, total = attend(
            tensor, keys, values, pages, largest, weight, total, first, whole, visible, kv_head,
            scale, KV_HEADS, HEAD_DIM, DIM, PAGE, TILE, False,
        )  # fmt: skip
        largest, weight, total = attend(
            tensor, keys, values, pages, largest, weight, total, whole, end, visible, kv_head,
            scale, KV_HEADS, HEAD_DIM, DIM, PAGE, TILE, True,
        )  # fmt: skip

        seen = weight > 0
        segment = (program + row * KV_HEADS + kv_head).to(tl.int64) * (TOKENS * GROUP) + one
        wanted = one < TOKENS * GROUP
        share = total / tl.where(seen, weight, 1.0)[:, None]
        tl.store(partial + segment[:, None] * DIM + channel[None, :], share, mask=wanted[:, None])
        log = tl.where(seen, largest + tl.log2(tl.where(seen, weight, 1.0)), float("-inf"))
        tl.store(summary + segment, log, mask=wanted)
        work += taken


@triton.jit
def merge(
    partial,
    summary,
    starts,
    lengths,
    out,  # (rows, heads, TOKENS, HEAD_DIM), by strides
    rows,
    launched,  # programs of `decode`
    row_stride,
    head_stride,
    token_stride,
    value_scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,  # read at once
):
    """One query: its segments, weighed by what they hold. One past its row's end gets zeros."""
    one, kv_head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    index, channel = tl.arange(0, ROWS), tl.arange(0, DIM)
    tiles = tl.cdiv(tl.load(lengths + index, mask=index < rows, other=0), TILE)
    all_tiles = tl.sum(tiles, 0) * KV_HEADS
    programs = tl.maximum(tl.minimum(launched, all_tiles), 1)
    of_pair = tl.cdiv(tl.load(lengths + row), TILE)
    first = tl.sum(tl.where(index < row, tiles, 0), 0) * KV_HEADS + kv_head * of_pair
    # Program p begins at tile p * all_tiles // programs. Programs with a tile of this pair:
    begin = ((first + 1) * programs - 1) // tl.maximum(all_tiles, 1)
    end = ((first + of_pair) * programs - 1) // tl.maximum(all_tiles, 1) + 1
    end = tl.where(of_pair > 0, end, begin)

    largest = tl.full([1], -1e30, tl.float32)
    weight = tl.zeros([1], tl.float32)
    total = tl.zeros([DIM], tl.float32)
    for start in range(begin, end, SEGMENTS):
        program = start + tl.arange(0, SEGMENTS)
        held = program < end
        segment = (program + row * KV_HEADS + kv_head) * (TOKENS * GROUP) + one
        log = tl.load(summary + segment, mask=held, other=float("-inf"))
        where = segment.to(tl.int64)[:, None] * DIM + channel[None, :]
        part = tl.load(partial + where, mask=held[:, None], other=0.0)
        newest = tl.maximum(largest, tl.max(log, 0))
        kept, share = tl.exp2(largest - newest), tl.exp2(log - newest)
        weight = weight * kept + tl.sum(share, 0)
        total = total * kept + tl.sum(part * share[:, None], 0)
        largest = newest
    real = (tl.load(starts + row) + one // GROUP < tl.load(lengths + row)) & (weight > 0)
    result = tl.where(real, total * value_scale / tl.where(real, weight, 1.0), 0.0)
    head, token = kv_head * GROUP + one % GROUP, one // GROUP
    spot = out + row * row_stride + head * head_stride + token * token_stride
    tl.store(spot + channel, result.to(out.dtype.element_ty), mask=channel < HEAD_DIM)
