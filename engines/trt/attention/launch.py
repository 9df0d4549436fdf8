"""Launches the kernels on PyTorch's tensors, for tests and benchmarks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from .decode import decode, merge
from .prefill import prefill
from .step import (
    Call,
    Heads,
    Scales,
    Step,
    decode_calls,
    decode_constants,
    merge_constants,
    prefill_call,
    prefill_constants,
    workspace,
    write_call,
    write_constants,
)
from .tiling import Tiling
from .write import write

KERNELS = {"write": write, "decode": decode, "merge": merge, "prefill": prefill}


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
    def pointers(self) -> dict[str, Any]:
        """What the kernels read and write of them."""
        return {
            "keys": self.keys,
            "values": self.values,
            "table": self.table,
            "starts": self.starts,
            "lengths": self.lengths,
        }

    def heads(self, query_heads: int) -> Heads:
        """The layer's heads."""
        _, kv_heads, page, head_dim = self.keys.shape
        group = query_heads // kv_heads
        return Heads(kv_heads=kv_heads, group=group, head_dim=head_dim, page=page)

    def step(self, tokens: int) -> Step:
        """A step of `tokens` a row."""
        rows, _ = self.table.shape
        return Step(rows=rows, tokens=tokens, table_stride=self.table.stride()[0])

    def scales(self, scores: float) -> Scales:
        """With the scale of the scores."""
        return Scales(scores=scores, keys=self.key_scale, values=self.value_scale)


def write_pages(pages: Pages, keys: Tensor, values: Tensor) -> None:
    """Store new keys and values, (rows, kv heads, tokens, head_dim) each, of equal strides."""
    _, kv_heads, tokens, _ = keys.shape
    heads = pages.heads(kv_heads)
    call = write_call(heads, pages.step(tokens), pages.scales(1.0), _strides(keys))
    pointers = {"new_keys": keys, "new_values": values, **pages.pointers}
    _launch(call, pointers, write_constants(heads))


class Decode:
    """Decode attention, with the workspace for one shape of queries."""

    def __init__(self, query: Tensor, pages: Pages, tiling: Tiling) -> None:
        rows, query_heads, self.tokens, _ = query.shape
        self.tiling, self.heads = tiling, pages.heads(query_heads)
        self._shape = {"tokens": self.tokens, "rows": rows}
        partial, summary = workspace(self.heads, tiling, **self._shape)
        self.partial = query.new_empty(partial).float()
        self.summary = query.new_empty(summary).float()

    def __call__(self, query: Tensor, pages: Pages, out: Tensor, scale: float) -> Tensor:
        """Attention of the last tokens, into `out`; both (rows, heads, tokens, head_dim)."""
        calls = decode_calls(
            self.heads, pages.step(self.tokens), pages.scales(scale), self.tiling,
            _strides(query), _strides(out),
        )  # fmt: skip
        between = {"partial": self.partial, "summary": self.summary}
        constants = decode_constants(self.heads, self.tiling, **self._shape)
        _launch(calls[0], {"query": query, **between, **pages.pointers},
                {**constants, **self.tiling.options})  # fmt: skip
        constants = merge_constants(self.heads, self.tiling, **self._shape)
        held = {"starts": pages.starts, "lengths": pages.lengths}
        _launch(calls[1], {**between, **held, "out": out}, {**constants, "num_warps": 4})
        return out


def prefill_attention(
    query: Tensor, pages: Pages, out: Tensor, scale: float, tiling: Tiling
) -> Tensor:
    """Causal attention of each row's new tokens; query and out (rows, heads, tokens, head_dim)."""
    _, query_heads, tokens, _ = query.shape
    heads = pages.heads(query_heads)
    call = prefill_call(
        heads, pages.step(tokens), pages.scales(scale), tiling, _strides(query), _strides(out)
    )
    constants = {**prefill_constants(heads, tiling), **tiling.options}
    _launch(call, {"query": query, "out": out, **pages.pointers}, constants)
    return out


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    row, head, token, _ = tensor.stride()
    return row, head, token


def _launch(call: Call, pointers: Mapping[str, Any], constants: Mapping[str, int]) -> None:
    KERNELS[call.kernel][call.grid](**pointers, **call.numbers, **constants)
