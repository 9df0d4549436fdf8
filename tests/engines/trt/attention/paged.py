"""Random paged caches, and what attention over them must be, in float64."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

POISON = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Sizes of a cache and of a step over it.

    Attributes:
        lengths: tokens that each row holds after the step; 0 for an idle row.
        tokens: of the step, a row; a row shorter than that is padded.
    """

    lengths: tuple[int, ...]
    tokens: int = 1
    kv_heads: int = 1
    group: int = 4
    head_dim: int = 64
    page: int = 32
    dtype: torch.dtype = torch.bfloat16
    cache: torch.dtype | None = None
    key_scale: float = 1.0
    value_scale: float = 1.0
    sharpness: float = 1.0
    seed: int = 0


@dataclass(slots=True)
class Drawn:
    """A case's tensors: `keys` and `values` are dense (rows, kv heads, T, head_dim)."""

    query: Tensor
    keys: Tensor
    values: Tensor
    pages: Any


def draw(case: Case, launch: Any) -> Drawn:
    """Dense keys and values, and the same in pages in any order; all that nobody holds is NaN."""
    random = torch.Generator().manual_seed(case.seed)
    rows, most = len(case.lengths), max(*case.lengths, 1)
    shape = (rows, case.kv_heads, most, case.head_dim)
    keys = torch.randn(shape, generator=random).to(case.dtype)
    values = torch.randn(shape, generator=random).to(case.dtype)
    heads = case.kv_heads * case.group
    query = torch.randn(rows, case.tokens, heads, case.head_dim, generator=random)
    query = (query * case.sharpness).to(case.dtype).transpose(1, 2)  # as projections leave it
    cache = case.cache or case.dtype
    per_row = -(-most // case.page)
    pool = (rows * per_row + 3, case.kv_heads, case.page, case.head_dim)
    order = torch.randperm(pool[0], generator=random)[: rows * per_row]
    stored = [torch.full(pool, POISON).to(cache) for _ in range(2)]
    starts = torch.tensor([max(length - case.tokens, 0) for length in case.lengths])
    pages = launch.Pages(
        keys=stored[0],
        values=stored[1],
        table=order.int().view(rows, per_row),
        starts=starts.int(),
        lengths=torch.tensor(case.lengths).int(),
        key_scale=case.key_scale,
        value_scale=case.value_scale,
    )
    return Drawn(query, keys, values, pages)


def fill(case: Case, drawn: Drawn) -> None:
    """Store the dense keys and values by plain indexing: no kernel of ours has a hand in it."""
    pages = drawn.pages
    for row, length in enumerate(case.lengths):
        for position in range(length):
            page, at = int(pages.table[row, position // case.page]), position % case.page
            for pool, dense, scale in (
                (pages.keys, drawn.keys, case.key_scale),
                (pages.values, drawn.values, case.value_scale),
            ):
                pool[page, :, at] = as_stored(dense[row, :, position], pool.dtype, scale)


def as_stored(tensor: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """What the cache holds of it: divided, bounded and rounded by PyTorch."""
    if dtype == torch.float8_e4m3fn:
        return (tensor.float() / scale).clamp(-448, 448).to(dtype)
    return tensor.to(dtype)


def exact(case: Case, drawn: Drawn, scale: float) -> Tensor:
    """Attention in float64 over what the cache holds, (rows, heads, tokens, head_dim)."""
    cache = case.cache or case.dtype
    keys = as_stored(drawn.keys, cache, case.key_scale).double() * case.key_scale
    values = as_stored(drawn.values, cache, case.value_scale).double() * case.value_scale
    out = torch.zeros(drawn.query.shape, dtype=torch.float64, device=drawn.query.device)
    for row, length in enumerate(case.lengths):
        start = max(length - case.tokens, 0)
        for token in range(min(case.tokens, length)):
            seen = start + token + 1
            k, v = (t[row, :, :seen].repeat_interleave(case.group, 0) for t in (keys, values))
            scores = torch.einsum("hd,htd->ht", drawn.query[row, :, token].double(), k) * scale
            out[row, :, token] = torch.einsum("ht,htd->hd", scores.softmax(-1), v)
    return out


def error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, over the worst row; NaN wherever found holds one."""
    off = (found.double() - expected).flatten(1).norm(dim=1)
    size = expected.flatten(1).norm(dim=1)
    return float((off / size.clamp_min(1e-30)).max()) if bool(size.any()) else float(off.max())


def softmax_scale(case: Case) -> float:
    """Of attention."""
    return 1 / math.sqrt(case.head_dim)
