"""One step of one layer: the grid and the numbers that each kernel is called with."""

import math
from dataclasses import dataclass

from .tiling import LEAST_QUERIES, MERGED_AT_ONCE, Tiling

WRITTEN_AT_ONCE = 16  # tokens of a program of `write`
Number = int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """One layer's heads and pages.

    Attributes:
        group: query heads of a kv head.
        page: tokens of a page.
    """

    kv_heads: int
    group: int
    head_dim: int
    page: int

    @property
    def dim(self) -> int:
        """head_dim, raised to a power of two."""
        return power_of_two(self.head_dim)

    @property
    def constants(self) -> dict[str, int]:
        """What every kernel is compiled for."""
        return {"KV_HEADS": self.kv_heads, "HEAD_DIM": self.head_dim, "DIM": self.dim}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The sizes of a step.

    Attributes:
        rows: B.
        tokens: new ones of a row, S.
        table_stride: page table entries from one row to the next.
    """

    rows: int
    tokens: int
    table_stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What scores are multiplied by, and what stored keys and values are multiplied by."""

    scores: float
    keys: float = 1.0
    values: float = 1.0

    @property
    def exponent(self) -> float:
        """Of a product of a query and a stored key, to a power of two."""
        return self.scores * self.keys * math.log2(math.e)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One launch.

    Attributes:
        kernel: "write", "decode", "merge" or "prefill".
        numbers: every argument that is no pointer, by name.
    """

    kernel: str
    grid: tuple[int, int, int]
    numbers: dict[str, Number]


def power_of_two(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def strides(heads: int, tokens: int, head_dim: int) -> tuple[int, int, int]:
    """Row, head and token strides of a contiguous (rows, heads, tokens, head_dim)."""
    return heads * tokens * head_dim, tokens * head_dim, head_dim


def decode_constants(heads: Heads, tiling: Tiling, *, tokens: int, rows: int) -> dict[str, int]:
    """What `decode` is compiled for; it serves fewer rows too."""
    queries = max(power_of_two(tokens * heads.group), LEAST_QUERIES)
    return {
        **_pair_constants(heads, tiling, tokens=tokens, rows=rows),
        "QUERIES": queries,
        "PAGE": heads.page,
    }


def merge_constants(heads: Heads, tiling: Tiling, *, tokens: int, rows: int) -> dict[str, int]:
    """What `merge` is compiled for; it serves fewer rows too."""
    return {
        **_pair_constants(heads, tiling, tokens=tokens, rows=rows),
        "SEGMENTS": MERGED_AT_ONCE,
    }


def _pair_constants(heads: Heads, tiling: Tiling, *, tokens: int, rows: int) -> dict[str, int]:
    return {
        **heads.constants,
        "GROUP": heads.group,
        "TOKENS": tokens,
        "TILE": tiling.tile,
        "ROWS": power_of_two(rows),
    }


def prefill_constants(heads: Heads, tiling: Tiling) -> dict[str, int]:
    """What `prefill` is compiled for."""
    return {
        **heads.constants,
        "GROUP": heads.group,
        "QUERIES": tiling.queries,
        "TILE": tiling.tile,
        "PAGE": heads.page,
    }


def write_constants(heads: Heads) -> dict[str, int]:
    """What `write` is compiled for."""
    return {**heads.constants, "PAGE": heads.page, "TOKENS": WRITTEN_AT_ONCE}


def workspace(heads: Heads, tiling: Tiling, *, tokens: int, rows: int) -> tuple[int, int]:
    """fp32 numbers of `partial` and of `summary`, which `decode` leaves to `merge`."""
    segments = tiling.programs + rows * heads.kv_heads
    queries = tokens * heads.group
    return segments * queries * heads.dim, segments * queries


def write_call(heads: Heads, step: Step, scales: Scales, new_strides: tuple[int, int, int]) -> Call:
    """Of `write`. `new_strides`: of the new keys, and of the new values."""
    row, head, token = new_strides
    return Call(
        kernel="write",
        grid=(-(-step.tokens // WRITTEN_AT_ONCE), heads.kv_heads, step.rows),
        numbers={
            "tokens": step.tokens,
            "table_stride": step.table_stride,
            "row_stride": row,
            "head_stride": head,
            "token_stride": token,
            "key_scale": scales.keys,
            "value_scale": scales.values,
        },
    )


def decode_calls(
    heads: Heads,
    step: Step,
    scales: Scales,
    tiling: Tiling,
    query_strides: tuple[int, int, int],
    out_strides: tuple[int, int, int],
) -> tuple[Call, Call]:
    """Of `decode` and `merge`, for steps of few tokens."""
    row, head, token = query_strides
    decode = Call(
        kernel="decode",
        grid=(tiling.programs, 1, 1),
        numbers={
            "rows": step.rows,
            "table_stride": step.table_stride,
            "row_stride": row,
            "head_stride": head,
            "token_stride": token,
            "scale": scales.exponent,
        },
    )
    row, head, token = out_strides
    merge = Call(
        kernel="merge",
        grid=(step.tokens * heads.group, heads.kv_heads, step.rows),
        numbers={
            "rows": step.rows,
            "launched": tiling.programs,
            "row_stride": row,
            "head_stride": head,
            "token_stride": token,
            "value_scale": scales.values,
        },
    )
    return decode, merge


def prefill_call(
    heads: Heads,
    step: Step,
    scales: Scales,
    tiling: Tiling,
    query_strides: tuple[int, int, int],
    out_strides: tuple[int, int, int],
) -> Call:
    """Of `prefill`."""
    row, head, token = query_strides
    out_row, out_head, out_token = out_strides
    return Call(
        kernel="prefill",
        grid=(-(-step.tokens * heads.group // tiling.queries), heads.kv_heads, step.rows),
        numbers={
            "tokens": step.tokens,
            "table_stride": step.table_stride,
            "row_stride": row,
            "head_stride": head,
            "token_stride": token,
            "out_row_stride": out_row,
            "out_head_stride": out_head,
            "out_token_stride": out_token,
            "scale": scales.exponent,
            "value_scale": scales.values,
        },
    )
