"""Compiles the kernels for a GPU that need not be here: cubins, and how they are launched.

Triton compiles in a process of its own: what it keeps, and what the environment tells it (the
interpreter that tests use, a cache at home), has no part in a build.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_trt.child import module_command
from nemo_trt.digest import file_digest
from nemo_trt.errors import BuildError
from nemo_trt.precision import DType

from .paged_attention import FOLDER, KernelFile, PagedAttention
from .step import Heads, decode_constants, merge_constants, prefill_constants, write_constants
from .tiling import Tiling, decode_tiling, prefill_tiling

TRITON_NAMES = {DType.BF16: "bf16", DType.FP16: "fp16", DType.FP8: "fp8e4nv", DType.FP32: "fp32"}
_STRIDES = ("row_stride", "head_stride", "token_stride", "out_row_stride", "out_head_stride",
            "out_token_stride")  # fmt: skip
_FLOATS = ("scale", "key_scale", "value_scale")
_ALIGNED = [["tt.divisibility", 16]]
_PTX_TYPES = {".u64": "pointer", ".u32": "i32", ".f32": "fp32"}
_TABLES = {"table": "i32", "starts": "i32", "lengths": "i32"}
_BETWEEN = {"partial": "fp32", "summary": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A kernel's machine code for one architecture.

    Attributes:
        entry: the function in it.
        cubin: the code.
        ptx: what it was assembled from.
        num_warps: of a block.
        shared_bytes: of a block's shared memory.
        parameters: see `KernelFile`.
    """

    entry: str
    cubin: bytes
    ptx: str
    num_warps: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]


def compile_attention(
    folder: Path,
    heads: Heads,
    *,
    sm: int,
    rows: int,
    compute: DType,
    scales: tuple[tuple[float, float] | None, ...],
) -> PagedAttention:
    """Compile every kernel into `folder`/attention.

    Args:
        folder: the engine's.
        sm: 90 for Hopper.
        rows: at most.
        compute: dtype of queries, new keys and values.
        scales: of each layer's stored keys and values; None for pages of the compute dtype.

    Raises:
        BuildError: the heads or dtypes cannot be served, or Triton is missing or fails.
    """
    kinds = sorted({DType.FP8 if one else compute for one in scales})
    for cache in kinds:
        require_servable(heads, sm=sm, cache=cache)
    (folder / FOLDER).mkdir()
    asked = {"heads": asdict(heads), "sm": sm, "rows": rows, "compute": compute, "caches": kinds}
    with tempfile.TemporaryDirectory() as kept:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
        environment |= {"TRITON_CACHE_DIR": kept, "TRITON_DEFAULT_FP_FUSION": "1"}
        command = module_command(__name__, str(folder / FOLDER))
        done = subprocess.run(
            command, input=json.dumps(asked), env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        if "No module named 'triton'" in said:
            raise BuildError("Paged attention needs Triton. Run: pip install 'nemo-trt[paged]'.")
        raise BuildError(f"Triton must compile the attention for sm_{sm}, got: {said or 'nothing'}")
    return PagedAttention(
        heads=heads,
        rows=rows,
        compute=compute,
        scales=scales,
        decode={cache: decode_tiling(sm, fp8=cache is DType.FP8) for cache in kinds},
        prefill={cache: prefill_tiling(sm, fp8=cache is DType.FP8) for cache in kinds},
        kernels=tuple(_filed(folder, one) for one in json.loads(done.stdout)),
    )


def require_servable(heads: Heads, *, sm: int, cache: DType) -> None:
    """Check that the kernels serve a layer.

    Raises:
        BuildError: they do not.
    """
    if heads.head_dim % 16 or not 16 <= heads.head_dim <= 256:
        raise BuildError(
            f"Paged attention needs a head_dim that is a multiple of 16, at most 256, got "
            f"{heads.head_dim}. Build with --attention native."
        )
    if heads.page not in (16, 32, 64, 128):
        raise BuildError(f"A page must have 16, 32, 64 or 128 tokens, got {heads.page}.")
    if sm < 80:
        raise BuildError(f"Paged attention needs sm_80 or later, got sm_{sm}.")
    if cache is DType.FP8 and sm < 89:
        raise BuildError(f"An FP8 cache needs sm_89 or later, got sm_{sm}.")


def _filed(folder: Path, made: dict[str, Any]) -> KernelFile:
    parameters = tuple(map(tuple, made["parameters"]))
    kernel = KernelFile(digest="", **{**made, "parameters": parameters})
    return replace(kernel, digest=file_digest(folder / kernel.file))


def compile_all(
    heads: Heads, *, sm: int, rows: int, compute: DType, cache: DType
) -> dict[str, Compiled]:
    """Every kernel by name. See `compile_attention`."""
    from .launch import KERNELS

    fp8 = cache is DType.FP8
    decode_cut, prefill_cut = decode_tiling(sm, fp8=fp8), prefill_tiling(sm, fp8=fp8)
    number, stored = TRITON_NAMES[compute], TRITON_NAMES[cache]
    pools = {"keys": stored, "values": stored, **_TABLES}
    most = {"tokens": 1, "rows": rows}
    plain = Tiling(tile=0, num_warps=4, num_stages=1)
    wanted: dict[str, tuple[dict[str, str], dict[str, int], Tiling]] = {
        "write": (
            {"new_keys": number, "new_values": number, **pools},
            write_constants(heads),
            plain,
        ),
        "decode": (
            {"query": number, **_BETWEEN, **pools},
            decode_constants(heads, decode_cut, **most),
            decode_cut,
        ),
        "merge": (
            {**_BETWEEN, "starts": "i32", "lengths": "i32", "out": number},
            merge_constants(heads, decode_cut, **most),
            plain,
        ),
        "prefill": (
            {"query": number, "out": number, **pools},
            prefill_constants(heads, prefill_cut),
            prefill_cut,
        ),
    }
    return {
        name: compile_kernel(KERNELS[name], pointers, constants, sm=sm, **cut.options)
        for name, (pointers, constants, cut) in wanted.items()
    }


def compile_kernel(
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, int],
    *,
    sm: int,
    num_warps: int,
    num_stages: int,
) -> Compiled:
    """Compile for `sm`. Pointers and strides must be multiples of 16 when launched.

    Args:
        pointers: argument -> Triton's name of its element type, "bf16" or "fp8e4nv", say.
        constants: values of the kernel's constants.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

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
    scratch = [getattr(made.metadata, f"{one}_scratch_size", 0) for one in ("global", "profile")]
    if any(scratch):
        raise BuildError(f"A kernel must need no memory of Triton's own, got {scratch} bytes.")
    named = [name for name in kernel.arg_names if name not in constants]
    return Compiled(
        entry=made.metadata.name,
        cubin=made.asm["cubin"],
        ptx=made.asm["ptx"],
        num_warps=made.metadata.num_warps,
        shared_bytes=made.metadata.shared,
        parameters=_parameters(made.asm["ptx"], named),
    )


def _parameters(ptx: str, names: list[str]) -> tuple[tuple[str, str], ...]:
    """The entry's own list: after our arguments Triton puts pointers to memory of its own."""
    entry = re.search(r"\.entry [^(]+\((.*?)\)", ptx, re.DOTALL)
    kinds = re.findall(r"\.param (\.\w+)", entry[1]) if entry else []
    named = names + [""] * (len(kinds) - len(names))
    found = tuple(
        (name, _PTX_TYPES.get(kind, kind)) for name, kind in zip(named, kinds, strict=True)
    )
    if any(kind != "pointer" for name, kind in found if not name):
        raise BuildError(f"Triton's own parameters must be pointers, got {found}.")
    return found


def main() -> None:
    """Compile what standard input asks for into the folder named; say what was made."""
    asked = json.load(sys.stdin)
    fields = ("entry", "num_warps", "shared_bytes", "parameters")
    found = []
    for cache in map(DType, asked["caches"]):
        made = compile_all(
            Heads(**asked["heads"]), sm=asked["sm"], rows=asked["rows"],
            compute=DType(asked["compute"]), cache=cache,
        )  # fmt: skip
        for name, one in made.items():
            (Path(sys.argv[1]) / f"{name}-{cache}.cubin").write_bytes(one.cubin)
            said = {field: getattr(one, field) for field in fields}
            found.append({"name": name, "cache": cache, **said})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
