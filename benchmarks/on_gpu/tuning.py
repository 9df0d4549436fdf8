"""How the paged kernels are best cut on this GPU: every tiling timed, the fastest first."""

import itertools
import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch

from nemo_trt.engines.trt.attention.tiling import Tiling
from on_gpu import attention
from on_gpu.scale import Work

DECODES = ((1, 32_768), (64, 4096))  # rows, tokens of each
PROGRAMS = (132, 264, 396, 528)
PREFILL = (1, 8192, 8192)  # rows, tokens, tokens held


def run(work: Work) -> dict[str, Any]:
    """Seconds of every tiling, per cache dtype."""
    launch = attention.launchers(work)
    if not work.scale.tiny:
        with multiprocessing.get_context("spawn").Pool(16) as pool:  # compiled side by side first
            pool.starmap(compile_one, [(work, *one) for one in every(work)], chunksize=1)
    decodes, prefill, counts = ((1, 40),), (1, 20, 40), (3,)
    if not work.scale.tiny:
        decodes, prefill, counts = DECODES, PREFILL, PROGRAMS
    found: dict[str, Any] = {"decode": [], "prefill": []}
    for name, kind, tiling in every(work):
        shapes = decodes if kind == "decode" else (prefill,)
        for shape in shapes:
            for programs in counts if kind == "decode" else (0,):
                took = timed(work, launch, name, kind, replaced(tiling, programs), shape)
                one = {"cache": name, "shape": shape, "programs": programs, "s": took, **tiling}
                found[kind].append(one)
    return found


def every(work: Work) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Cache dtype, kernel and tiling. Looking a page up halves the depth of Triton's pipeline."""
    tiny = work.scale.tiny
    tiles, warps, stages = ((16,), (4,), (3,)) if tiny else ((32, 64, 128), (4, 8), (3, 5, 7, 9))
    for name in attention.DTYPES:
        for tile, num_warps, num_stages in itertools.product(tiles, warps, stages):
            shape = {"tile": tile, "num_warps": num_warps, "num_stages": num_stages}
            yield name, "decode", shape
            if tile != 32 and num_stages != 9:
                for queries in (64,) if tiny else (64, 128):
                    yield name, "prefill", {"queries": queries, **shape}


def replaced(tiling: dict[str, int], programs: int) -> Any:
    """The tiling itself."""
    return Tiling(**tiling, **({"programs": programs} if programs else {}))


def compile_one(work: Work, name: str, kind: str, tiling: dict[str, int]) -> None:
    """Compile, on a small cache; what does not fit the GPU is found again when timed."""
    launch = attention.launchers(work)
    torch.set_num_threads(1)
    shape = (1, 2048) if kind == "decode" else (1, 2048, 2048)
    timed(work, launch, name, kind, replaced(tiling, 0), shape)


def timed(
    work: Work, launch: Any, name: str, kind: str, tiling: Any, shape: tuple[int, ...]
) -> float | None:
    """Seconds of one call; None for a tiling that the GPU has no room for."""
    random = torch.Generator(work.scale.device).manual_seed(0)
    rows, length = shape[0], shape[-1]
    tokens = 1 if kind == "decode" else shape[1]
    pages = _cached(work, launch, random, rows, length, tokens, name)
    query = attention.query_of(work, random, rows, tokens)
    out = torch.empty_like(query)
    try:
        if kind == "decode":
            ours = launch.Decode(query, pages, tiling)
            return attention.replayed(
                work, [lambda: ours(query, pages, out, attention.sizes_of(work).scale)] * 4
            )
        return attention.replayed(
            work,
            [
                lambda: launch.prefill_attention(
                    query, pages, out, attention.sizes_of(work).scale, tiling
                )
            ],
        )
    except Exception as error:  # Triton's own: out of shared memory
        if "OutOfResources" not in type(error).__name__:
            raise
        return None


_kept: dict[tuple[object, ...], Any] = {}


def _cached(
    work: Work, launch: Any, random: torch.Generator, rows: int, length: int, tokens: int, name: str
) -> Any:
    key = (rows, length, tokens, name)
    if key not in _kept:
        _kept.clear()
        _kept[key] = attention.paged(work, launch, random, [length] * rows, tokens, name)
    return _kept[key]


def table(found: dict[str, Any]) -> str:
    """The five fastest of each kernel, cache dtype and shape."""
    lines = []
    for kind in ("decode", "prefill"):
        keys = sorted({(one["cache"], tuple(one["shape"])) for one in found[kind]})
        for key in keys:
            ones = [one for one in found[kind] if (one["cache"], tuple(one["shape"])) == key]
            ones = sorted((one for one in ones if one["s"]), key=lambda one: one["s"])
            lines.append(f"{kind} {key}:")
            lines += [f"  {o.pop('s') * 1e6:.1f} us {o}" for o in map(dict, ones[:6])]
            lines.append(f"  slowest {ones[-1]['s'] * 1e6:.1f} us")
    return "\n".join(lines)
