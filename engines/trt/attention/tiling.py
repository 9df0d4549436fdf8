"""How each kernel is cut for an architecture and a cache, by measurement or by what fits."""

from dataclasses import dataclass

LEAST_QUERIES = 16  # of a tensor core's product
MERGED_AT_ONCE = 16  # segments of a pair
_HOPPER = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a kernel is cut and compiled.

    Attributes:
        tile: keys of a step of the loop.
        queries: of a tile of prefill, heads of a group times tokens.
        programs: of decode; a number that keeps every multiprocessor busy.
    """

    tile: int
    queries: int = 128
    programs: int = 264
    num_warps: int = 4
    num_stages: int = 5

    @property
    def options(self) -> dict[str, int]:
        """Triton's own."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def decode_tiling(sm: int, *, fp8: bool) -> Tiling:
    """The tiling of decode on architecture `sm` (90: Hopper).

    On an H100 (`benchmarks/gpu.py --stage tuning`) it was the fastest over an FP8 cache, and within
    6 % of the fastest over a BF16 one. Elsewhere it spills no register, and has not been timed.
    """
    return Tiling(tile=64 if sm == _HOPPER or fp8 else 32)


def prefill_tiling(sm: int, *, fp8: bool) -> Tiling:
    """The tiling of prefill; see `decode_tiling`."""
    if sm != _HOPPER:
        return Tiling(queries=128, tile=32, num_warps=8, num_stages=7)
    if fp8:
        return Tiling(queries=128, tile=128, num_warps=8)
    return Tiling(queries=64, tile=64)
