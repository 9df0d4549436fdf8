"""What an engine with paged attention keeps beside its plan: the kernels, and how they were cut."""

from dataclasses import dataclass
from typing import Any, Self

from .step import Heads
from .tiling import Tiling

FOLDER = "attention"
NAMES = ("write", "decode", "merge", "prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFile:
    """A kernel's machine code.

    Attributes:
        name: "write", "decode", "merge" or "prefill".
        digest: see `nemo_trt.digest.file_digest`.
        entry: the function in it.
        num_warps: of a block.
        shared_bytes: of a block's shared memory.
        parameters: (name, "pointer" | "i32" | "fp32") in order; pointers of no name are null.
    """

    name: str
    digest: str
    entry: str
    num_warps: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]

    @property
    def file(self) -> str:
        """In the engine's folder."""
        return f"{FOLDER}/{self.name}.cubin"


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedAttention:
    """The attention of an engine.

    Attributes:
        heads: of every layer.
        rows: at most, B.
        compute: dtype of queries, new keys and values, and the result.
        cache: dtype of the pages.
        decode, prefill: how those kernels are cut.
        kernels: their machine code.
    """

    heads: Heads
    rows: int
    compute: str
    cache: str
    decode: Tiling
    prefill: Tiling
    kernels: tuple[KernelFile, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """From the object that `dataclasses.asdict` made.

        Raises:
            ValueError: the kernels are not those that are launched.
        """
        names = [one["name"] for one in data["kernels"]]
        if names != list(NAMES):
            raise ValueError(f"kernels must be {', '.join(NAMES)}, got {names}")
        return cls(
            heads=Heads(**data["heads"]),
            rows=data["rows"],
            compute=data["compute"],
            cache=data["cache"],
            decode=Tiling(**data["decode"]),
            prefill=Tiling(**data["prefill"]),
            kernels=tuple(
                KernelFile(**{**one, "parameters": tuple(map(tuple, one["parameters"]))})
                for one in data["kernels"]
            ),
        )
