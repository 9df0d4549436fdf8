"""Our paged kernels against PyTorch's attention: error, bandwidth of decode, rate of prefill.

Decode is bound by bytes: every key and value once. Its calls are replays of a CUDA graph over more
caches than the L2 cache can hold. Prefill is bound by operations.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_trt.engines.trt.attention import tiling
from on_gpu.clock import copy_bytes_per_s, seconds
from on_gpu.scale import Work

L2_BYTES, MOST_BYTES = 2**28, 12 * 2**30
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}  # in a tiny run FP16 for BF16
BATCHES, LENGTHS = (1, 8, 64), (1024, 4096, 32_768, 131_072)
CHUNKS = ((1, 1024, 1024), (1, 8192, 8192), (8, 2048, 2048), (1, 2048, 32_768), (1, 2048, 131_072))
"""Rows, tokens of the step, tokens that a row holds after it."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is timed: decode's rows and lengths, prefill's chunks; decode again by size of page."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    chunks: tuple[tuple[int, int, int], ...]
    page: int
    pages: tuple[int, ...]
    paged: tuple[int, int]
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def scale(self) -> float:
        """Softmax's."""
        return 1 / math.sqrt(self.head_dim)

    def bytes_of(self, tokens: int, name: str) -> int:
        """Keys and values of so many tokens, once."""
        return 2 * tokens * self.kv_heads * self.head_dim * DTYPES[name].itemsize


FULL = Sizes(
    BATCHES, LENGTHS, CHUNKS, 64, (16, 32, 64, 128), (8, 32_768), 32, 8, 128, torch.bfloat16
)
TINY = Sizes((1,), (40,), ((1, 8, 20),), 16, (32,), (1, 40), 2, 1, 64, torch.float16)


def sizes_of(work: Work) -> Sizes:
    """The sizes of a full or of a tiny run."""
    return TINY if work.scale.tiny else FULL


def run(work: Work) -> dict[str, Any]:
    """Every size and cache dtype.

    Raises:
        MachineError: Triton is missing.
    """
    launch = launchers(work)
    sizes = sizes_of(work)
    random = torch.Generator(work.scale.device).manual_seed(0)
    found: dict[str, Any] = {
        "page": sizes.page,
        "heads": f"{sizes.heads} query and {sizes.kv_heads} kv heads of {sizes.head_dim}",
        "copy_bytes_per_s": copy_bytes_per_s(work.scale),
        "decode": [],
        "prefill": [],
        "pages": [],
    }
    for name in DTYPES:
        for rows in sizes.batches:
            for length in sizes.lengths:
                if sizes.bytes_of(rows * length, name) <= MOST_BYTES:
                    one = timed_decode(work, launch, random, rows, length, name)
                    found["decode"].append(one)
        for rows, tokens, length in sizes.chunks:
            one = timed_prefill(work, launch, random, rows, tokens, length, name)
            found["prefill"].append(one)
        for page in sizes.pages:
            one = timed_decode(work, launch, random, *sizes.paged, name, page)
            found["pages"].append({"page": page, **one})
    found["ragged"] = ragged(work, launch, random)
    return found


def launchers(work: Work) -> Any:
    """The kernels' launchers; a tiny run interprets them.

    Raises:
        MachineError: Triton is missing.
    """
    from nemo_trt.errors import MachineError

    if work.scale.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        from nemo_trt.engines.trt.attention import launch
    except ImportError as error:
        raise MachineError("Triton must be installed; run: pip install triton") from error
    return launch


def decode_tiling(work: Work, name: str) -> Any:
    """Decode's tiling; a tiny run starts few programs."""
    if work.scale.tiny:
        return tiling.Tiling(tile=16, programs=3)
    return tiling.decode_tiling(architecture(), fp8=name == "fp8")


def architecture() -> int:
    """90 for Hopper."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def paged(
    work: Work,
    launch: Any,
    random: torch.Generator,
    lengths: list[int],
    tokens: int,
    name: str,
    page: int = 0,
) -> Any:
    """A filled pool, its pages in random order; standard normal keys and values."""
    sizes, device = sizes_of(work), work.scale.device
    page = page or sizes.page
    dtype = sizes.dtype if name == "bf16" else DTYPES[name]
    rows, per_row = len(lengths), -(-max(lengths) // page)
    shape = (rows * per_row, sizes.kv_heads, page, sizes.head_dim)
    keys, values = (
        torch.randn(shape, generator=random, device=device, dtype=sizes.dtype).to(dtype)
        for _ in range(2)
    )
    order = torch.randperm(rows * per_row, generator=random, device=device)
    held = torch.tensor(lengths, device=device, dtype=torch.int32)
    return launch.Pages(
        keys=keys, values=values, table=order.int().view(rows, per_row),
        starts=held - tokens, lengths=held, key_scale=1.0, value_scale=1.0,
    )  # fmt: skip


def query_of(work: Work, random: torch.Generator, rows: int, tokens: int) -> Tensor:
    """(rows, heads, tokens, head_dim), laid out as projections leave it."""
    sizes = sizes_of(work)
    shape = (rows, tokens, sizes.heads, sizes.head_dim)
    drawn = torch.randn(shape, generator=random, device=work.scale.device, dtype=sizes.dtype)
    return drawn.transpose(1, 2)


def dense(pages: Any, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values (rows, kv heads, length, head_dim)."""

    def gathered(pool: Tensor) -> Tensor:
        held = pool[pages.table.long()].to(dtype)  # (rows, pages, kv heads, page, dim)
        return held.transpose(1, 2).flatten(2, 3)[:, :, :length].contiguous()

    return gathered(pages.keys), gathered(pages.values)


def exact(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention in float64 of the last queries, row 0, (heads, queries, head_dim)."""
    asked = query[0, :, -min(query.shape[2], 4) :].double()
    group = query.shape[1] // keys.shape[1]
    k, v = (t[0].double().repeat_interleave(group, 0) for t in (keys, values))
    length, count = k.shape[1], asked.shape[1]
    scores = asked @ k.transpose(1, 2) / math.sqrt(k.shape[2])
    last = torch.arange(length - count, length, device=query.device)
    scores.masked_fill_(torch.arange(length, device=query.device) > last[:, None], -math.inf)
    return scores.softmax(-1) @ v


def error(out: Tensor, expected: Tensor) -> float:
    """|out - expected| / |expected| of the last queries of row 0."""
    seen = out[0, :, -expected.shape[1] :].double()
    return float((seen - expected).norm() / expected.norm())


def replayed(work: Work, calls: list[Callable[[], object]]) -> float:
    """Seconds of one call; on a GPU as one CUDA graph of all of them."""
    if work.scale.tiny:
        return seconds(calls[0], work.scale)
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return seconds(graph.replay, work.scale, inner=4) / len(calls)


def timed_decode(
    work: Work,
    launch: Any,
    random: torch.Generator,
    rows: int,
    length: int,
    name: str,
    page: int = 0,
) -> dict[str, Any]:
    """One token a row, all rows of one length; PyTorch's beside it for the usual page."""
    sizes = sizes_of(work)
    moved = sizes.bytes_of(rows * length, name)
    copies = max(1, min(32, L2_BYTES // moved)) if not work.scale.tiny else 1
    caches = [paged(work, launch, random, [length] * rows, 1, name, page) for _ in range(copies)]
    query = query_of(work, random, rows, 1)
    out = torch.empty_like(query)
    ours = launch.Decode(query, caches[0], decode_tiling(work, name))
    took = replayed(work, [lambda p=p: ours(query, p, out, sizes.scale) for p in caches])
    ours(query, caches[0], out.fill_(math.nan), sizes.scale)
    keys, values = dense(caches[0], length, sizes.dtype)
    found = {
        "rows": rows,
        "length": length,
        "cache": name,
        "s": took,
        "bytes": moved,
        "error": error(out, exact(query, keys, values)),
    }
    if name == "bf16" and not page:
        del caches
        others = [(keys, values)] + [(keys.clone(), values.clone()) for _ in range(copies - 1)]
        found["sdpa_s"], found["sdpa_error"] = peer(work, query, others)
    return found


def timed_prefill(
    work: Work, launch: Any, random: torch.Generator, rows: int, tokens: int, length: int, name: str
) -> dict[str, Any]:
    """A chunk of `tokens` that ends at `length`."""
    sizes = sizes_of(work)
    pages = paged(work, launch, random, [length] * rows, tokens, name)
    query = query_of(work, random, rows, tokens)
    out = torch.empty_like(query)
    sm = 0 if work.scale.tiny else architecture()
    cut = tiling.prefill_tiling(sm, fp8=name == "fp8")
    took = replayed(work, [lambda: launch.prefill_attention(query, pages, out, sizes.scale, cut)])
    launch.prefill_attention(query, pages, out.fill_(math.nan), sizes.scale, cut)
    keys, values = dense(pages, length, sizes.dtype)
    pairs = rows * (tokens * (length - tokens) + tokens * (tokens + 1) / 2)
    found = {
        "rows": rows,
        "tokens": tokens,
        "length": length,
        "cache": name,
        "s": took,
        "flops": 4 * sizes.heads * sizes.head_dim * pairs,
        "error": error(out, exact(query, keys, values)),
    }
    if name == "bf16":
        found["sdpa_s"], found["sdpa_error"] = peer(work, query, [(keys, values)])
    return found


def peer(
    work: Work, query: Tensor, caches: list[tuple[Tensor, Tensor]]
) -> tuple[float | None, float | None]:
    """PyTorch's own attention over dense keys, the fastest of its backends that takes them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right

    tokens, length = query.shape[2], caches[0][0].shape[2]
    options: dict[str, Any] = {"scale": sizes_of(work).scale, "enable_gqa": True}
    if tokens == length:
        options["is_causal"] = True
    elif tokens > 1:
        options["attn_mask"] = causal_lower_right(tokens, length)
    attend = torch.nn.functional.scaled_dot_product_attention
    best: tuple[float | None, float | None] = (None, None)
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    for backend in [SDPBackend.MATH] if work.scale.tiny else backends:
        try:
            with sdpa_kernel(backend):
                calls = [lambda k=k, v=v: attend(query, k, v, **options) for k, v in caches]
                took = replayed(work, calls)
                if best[0] is None or took < best[0]:
                    best = took, error(calls[0](), exact(query, *caches[0]))
        except RuntimeError as refused:
            print(f"{backend}: {str(refused)[:200]}")
    return best


def ragged(work: Work, launch: Any, random: torch.Generator) -> dict[str, Any]:
    """One long row among short ones: the work is shared out by tokens, not by rows."""
    short, long, rows = (9, 40, 2) if work.scale.tiny else (512, 65_536, 64)
    sizes = sizes_of(work)
    lengths = [short] * (rows - 1) + [long]
    pages = paged(work, launch, random, lengths, 1, "bf16")
    query = query_of(work, random, rows, 1)
    out = torch.empty_like(query)
    ours = launch.Decode(query, pages, decode_tiling(work, "bf16"))
    took = replayed(work, [lambda: ours(query, pages, out, sizes.scale)])
    return {
        "lengths": f"{rows - 1} x {short}, 1 x {long}",
        "s": took,
        "bytes": sizes.bytes_of(sum(lengths), "bf16"),
    }


def table(found: dict[str, Any]) -> str:
    """Decode, then prefill."""
    copy = found["copy_bytes_per_s"]

    def us(value: float | None) -> str:
        return "–" if value is None else f"{value * 1e6:,.1f}"

    lines = [
        f"Decode, {found['heads']}, pages of {found['page']}. "
        "Share: of the rate of a large copy.\n",
        "| rows | tokens each | cache | us | GB/s | share | error | PyTorch us | its error |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found["decode"]:
        rate = one["bytes"] / one["s"]
        theirs = one.get("sdpa_error")
        lines.append(
            f"| {one['rows']} | {one['length']:,} | {one['cache']} | {us(one['s'])} "
            f"| {rate / 1e9:,.0f} | {rate / copy:.0%} | {one['error']:.1e} "
            f"| {us(one.get('sdpa_s'))} | {'–' if theirs is None else f'{theirs:.1e}'} |"
        )
    one = found["ragged"]
    rate = one["bytes"] / one["s"]
    lines += [
        f"\nRagged, {one['lengths']}: {us(one['s'])} us, {rate / 1e9:,.0f} GB/s, "
        f"{rate / copy:.0%}.",
        f"\nBy size of page, {found['pages'][0]['rows']} rows of {found['pages'][0]['length']:,}: "
        + "; ".join(f"{o['cache']} {o['page']}: {us(o['s'])} us" for o in found["pages"])
        + ".",
        "\nPrefill.\n",
        "| rows | new tokens | held | cache | us | Tflop/s | error | PyTorch Tflop/s | ratio |",
        "|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for one in found["prefill"]:
        theirs = one.get("sdpa_s")
        other = (
            "– | –"
            if theirs is None
            else (f"{one['flops'] / theirs / 1e12:,.0f} | {theirs / one['s']:.2f}")
        )
        lines.append(
            f"| {one['rows']} | {one['tokens']:,} | {one['length']:,} | {one['cache']} "
            f"| {us(one['s'])} | {one['flops'] / one['s'] / 1e12:,.1f} | {one['error']:.1e} "
            f"| {other} |"
        )
    return "\n".join(lines)
