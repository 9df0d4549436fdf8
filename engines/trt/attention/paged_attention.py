"""What an engine with paged attention keeps beside its plan: the kernels, and how they were cut."""

from dataclasses import dataclass
from typing import Any, Self

from nemo_trt.precision import DType

from .step import Heads
from .tiling import Tiling

FOLDER = "attention"
NAMES = ("write", "decode", "merge", "prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFile:
    """A kernel's machine code.

    Attributes:
        name: "write", "decode", "merge" or "prefill".
        cache: dtype of the pages that it serves.
        digest: see `nemo_trt.digest.file_digest`.
        entry: the function in it.
        num_warps: of a block.
        shared_bytes: of a block's shared memory.
        parameters: (name, "pointer" | "i32" | "fp32") in order; pointers of no name are null.
    """

    name: str
    cache: str
    digest: str
    entry: str
    num_warps: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]

    @property
    def file(self) -> str:
        """In the engine's folder."""
        return f"{FOLDER}/{self.name}-{self.cache}.cubin"


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedAttention:
    """The attention of an engine.

    Attributes:
        heads: of every layer.
        rows: at most, B.
        compute: dtype of queries, new keys and values, and the result.
        scales: of each layer, what stored keys and values are multiplied by; None if its pages have
            the compute dtype and not FP8.
        decode, prefill: dtype of pages -> how those kernels are cut.
        kernels: their machine code, for each dtype of pages.
    """

    heads: Heads
    rows: int
    compute: str
    scales: tuple[tuple[float, float] | None, ...]
    decode: dict[str, Tiling]
    prefill: dict[str, Tiling]
    kernels: tuple[KernelFile, ...]

    @property
    def caches(self) -> tuple[DType, ...]:
        """The dtype of each layer's pages."""
        return tuple(DType.FP8 if scales else DType(self.compute) for scales in self.scales)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """From the object that `dataclasses.asdict` made.

        Raises:
            ValueError: the kernels are not those that are launched.
        """
        scales = tuple((float(one[0]), float(one[1])) if one else None for one in data["scales"])
        caches = {DType.FP8 if one else DType(data["compute"]) for one in scales}
        names = [(one["name"], one["cache"]) for one in data["kernels"]]
        wanted = [(name, cache) for cache in sorted(caches) for name in NAMES]
        if names != wanted:
            raise ValueError(f"kernels must be {wanted}, got {names}")
        return cls(
            heads=Heads(**data["heads"]),
            rows=data["rows"],
            compute=data["compute"],
            scales=scales,
            decode={cache: Tiling(**one) for cache, one in data["decode"].items()},
            prefill={cache: Tiling(**one) for cache, one in data["prefill"].items()},
            kernels=tuple(
                KernelFile(**{**one, "parameters": tuple(map(tuple, one["parameters"]))})
                for one in data["kernels"]
            ),
        )
