"""Launches the kernels on PyTorch's tensors, for tests and benchmarks."""

import math
from dataclasses import dataclass
from typing import Protocol, Self

import triton

from .decode import decode, merge
from .prefill import prefill
from .tiling import LEAST_QUERIES, MERGED_AT_ONCE, Tiling
from .write import write


class Tensor(Protocol):
    """What is needed of PyTorch's tensors: this package does without PyTorch itself."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def stride(self) -> tuple[int, ...]: ...
    def new_empty(self, *shape: int) -> Self: ...
    def float(self) -> Self: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """One layer's cache, and which rows hold what of it.

    Attributes:
        keys, values: (pages, kv heads, page, head_dim), BF16, FP16, FP32 or E4M3.
        table: (rows, most pages of a row) int32; entry i of a row holds the tokens from i * page.
        starts: (rows,) int32, the position of each row's first new token.
        lengths: (rows,) int32, tokens that a row holds, new ones included; 0 for an idle row.
        key_scale, value_scale: what a stored E4M3 number is multiplied by.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    starts: Tensor
    lengths: Tensor
    key_scale: float = 1.0
    value_scale: float = 1.0

    @property
    def shape(self) -> dict[str, int]:
        """The kernels' constants."""
        _, heads, page, head_dim = self.keys.shape
        dim = triton.next_power_of_2(head_dim)
        return {"KV_HEADS": heads, "PAGE": page, "HEAD_DIM": head_dim, "DIM": dim}


def write_pages(pages: Pages, keys: Tensor, values: Tensor, *, tokens: int = 16) -> None:
    """Store new keys and values, (rows, kv heads, tokens, head_dim) each, of equal strides."""
    rows, heads, new, _ = keys.shape
    write[(triton.cdiv(new, tokens), heads, rows)](
        keys, values, pages.keys, pages.values, pages.table, pages.starts, pages.lengths,
        new, pages.table.stride()[0], *keys.stride()[:3], pages.key_scale, pages.value_scale,
        TOKENS=tokens, **pages.shape,
    )  # fmt: skip


class Decode:
    """Decode attention, with the workspace for one shape of queries."""

    def __init__(self, query: Tensor, pages: Pages, tiling: Tiling) -> None:
        self.rows, heads, self.tokens, _ = query.shape
        self.group = heads // pages.shape["KV_HEADS"]
        self.tiling = tiling
        queries = self.tokens * self.group
        self.queries = max(triton.next_power_of_2(queries), LEAST_QUERIES)
        segments = tiling.programs + self.rows * pages.shape["KV_HEADS"]
        self.partial = query.new_empty(segments, queries, pages.shape["DIM"]).float()
        self.summary = query.new_empty(segments, queries).float()

    def __call__(self, query: Tensor, pages: Pages, out: Tensor, scale: float) -> Tensor:
        """Attention of the last tokens, into `out`; both (rows, heads, tokens, head_dim)."""
        shape, tiling = pages.shape, self.tiling
        common = {
            "KV_HEADS": shape["KV_HEADS"],
            "HEAD_DIM": shape["HEAD_DIM"],
            "DIM": shape["DIM"],
            "GROUP": self.group,
            "TOKENS": self.tokens,
            "TILE": tiling.tile,
            "ROWS": triton.next_power_of_2(self.rows),
        }
        decode[(tiling.programs,)](
            query, pages.keys, pages.values, pages.table, pages.starts, pages.lengths,
            self.partial, self.summary, self.rows, pages.table.stride()[0], *query.stride()[:3],
            scale * pages.key_scale * math.log2(math.e),
            QUERIES=self.queries, PAGE=shape["PAGE"], **common, **tiling.options,
        )  # fmt: skip
        merge[(self.tokens * self.group, shape["KV_HEADS"], self.rows)](
            self.partial, self.summary, pages.starts, pages.lengths, out, self.rows,
            tiling.programs, *out.stride()[:3], pages.value_scale,
            SEGMENTS=MERGED_AT_ONCE, num_warps=4, **common,
        )  # fmt: skip
        return out


def prefill_attention(
    query: Tensor, pages: Pages, out: Tensor, scale: float, tiling: Tiling
) -> Tensor:
    """Causal attention of each row's new tokens; query and out (rows, heads, tokens, head_dim)."""
    rows, heads, tokens, _ = query.shape
    group = heads // pages.shape["KV_HEADS"]
    grid = (triton.cdiv(tokens * group, tiling.queries), pages.shape["KV_HEADS"], rows)
    prefill[grid](
        query, pages.keys, pages.values, pages.table, pages.starts, pages.lengths, out,
        tokens, pages.table.stride()[0], *query.stride()[:3], *out.stride()[:3],
        scale * pages.key_scale * math.log2(math.e), pages.value_scale,
        GROUP=group, QUERIES=tiling.queries, TILE=tiling.tile, **pages.shape, **tiling.options,
    )  # fmt: skip
    return out
