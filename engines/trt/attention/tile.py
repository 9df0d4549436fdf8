"""Attention of one tile of queries over a run of paged keys: the loop of decode and of prefill.

Over E4M3 the products are done in FP16, for which GPUs have a conversion from E4M3; a query beyond
65,504 would be infinite there.
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    query,  # (M, DIM), in the dtype of the products
    keys,  # the layer's pool (pages, KV_HEADS, PAGE, HEAD_DIM)
    values,  # likewise
    pages,  # the row's page table: entry i holds the tokens from i * PAGE
    largest,  # (M,) float32: the largest score so far, in units of log2(e)
    weight,  # (M,) float32: the sum of exponentials so far
    total,  # (M, DIM) float32: the weighted values so far
    first,  # a multiple of TILE
    end,  # exclusive
    visible,  # (M,): the last position that each query sees
    kv_head,
    scale,  # of the scores, log2(e) included
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take the keys of positions [first, end) into (largest, weight, total): online softmax.

    Without MASKED every query must see all of them, and `end` must be a multiple of TILE too.
    Nothing is read from positions at or past `end`: what lies there may be anything.
    """
    channel = tl.arange(0, DIM)
    for start in range(first, end, TILE):
        position = start + tl.arange(0, TILE)
        if PAGE >= TILE:  # the tile lies in one page
            page = tl.load(pages + start // PAGE).to(tl.int64)
            slot = (page * KV_HEADS + kv_head) * PAGE + start % PAGE + tl.arange(0, TILE)
        else:
            if MASKED:
                page = tl.load(pages + position // PAGE, mask=position < end, other=0)
            else:
                page = tl.load(pages + position // PAGE)
            slot = (page.to(tl.int64) * KV_HEADS + kv_head) * PAGE + position % PAGE
        where = slot[:, None] * HEAD_DIM + channel[None, :]
        if MASKED:
            held = (position < end)[:, None] & (channel < HEAD_DIM)[None, :]
            key = tl.load(keys + where, mask=held, other=0.0)
            value = tl.load(values + where, mask=held, other=0.0)
        elif DIM != HEAD_DIM:
            held = (channel < HEAD_DIM)[None, :]
            key = tl.load(keys + where, mask=held, other=0.0)
            value = tl.load(values + where, mask=held, other=0.0)
        else:
            key = tl.load(keys + where)
            value = tl.load(values + where)
        scores = tl.dot(query, tl.trans(key.to(query.dtype))) * scale  # (M, TILE)
        if MASKED:
            seen = (position[None, :] <= visible[:, None]) & (position < end)[None, :]
            scores = tl.where(seen, scores, float("-inf"))
        # A query that has seen nothing yet must not take -inf from -inf.
        newest = tl.maximum(largest, tl.maximum(tl.max(scores, 1), -1e30))
        kept = tl.exp2(largest - newest)
        probability = tl.exp2(scores - newest[:, None])
        weight = weight * kept + tl.sum(probability, 1)
        total = total * kept[:, None]
        total = tl.dot(probability.to(query.dtype), value.to(query.dtype), total)
        largest = newest
    return largest, weight, total
