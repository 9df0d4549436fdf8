"""Compiles a kernel for a GPU that need not be here: its cubin, and how it is launched."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_STRIDES = ("row_stride", "head_stride", "token_stride", "out_row_stride", "out_head_stride",
            "out_token_stride")  # fmt: skip
_FLOATS = ("scale", "key_scale", "value_scale")
_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A kernel's machine code for one architecture.

    Attributes:
        name: of its entry.
        cubin: the code.
        ptx: what it was assembled from.
        num_warps: of a block.
        shared_bytes: of a block's shared memory.
    """

    name: str
    cubin: bytes
    ptx: str
    num_warps: int
    shared_bytes: int


def compile_kernel(
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, int],
    *,
    sm: int,
    num_warps: int,
    num_stages: int,
) -> Compiled:
    """Compile for `sm` (90 for Hopper). Pointers and strides must be multiples of 16 when launched.

    Args:
        pointers: argument -> Triton's name of its element type, "bf16" or "fp8e4nv", say.
        constants: values of the kernel's constants.
    """
    signature: dict[str, str] = {}
    for name in kernel.arg_names:
        if name in pointers:
            signature[name] = f"*{pointers[name]}"
        elif name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = "fp32" if name in _FLOATS else "i32"
    aligned = [n for n in kernel.arg_names if n in pointers or n in _STRIDES]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(n),): value for n, value in constants.items()},
        attrs={(kernel.arg_names.index(n),): _ALIGNED for n in aligned},
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", sm, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    return Compiled(
        name=made.metadata.name,
        cubin=made.asm["cubin"],
        ptx=made.asm["ptx"],
        num_warps=made.metadata.num_warps,
        shared_bytes=made.metadata.shared,
    )
