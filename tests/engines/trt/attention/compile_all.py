"""Compiles every kernel for the architectures named, and prints what each takes as JSON."""

import json
import re
import subprocess
import sys
import tempfile

from triton import knobs

from nemo_trt.engines.trt.attention import ahead, tiling
from nemo_trt.engines.trt.attention.decode import decode, merge
from nemo_trt.engines.trt.attention.prefill import prefill
from nemo_trt.engines.trt.attention.write import write

HEADS = {"KV_HEADS": 8, "HEAD_DIM": 128, "DIM": 128}
TABLES = {"table": "i32", "starts": "i32", "lengths": "i32"}
CACHES = ("bf16", "fp8e4nv")


def usage(made: ahead.Compiled) -> dict[str, int]:
    """What cuobjdump, which Triton brings along, reads from the cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said))
    return {
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]),
        "local_bytes": int(found["LOCAL"]),
        "shared_bytes": made.shared_bytes,
        "tensor_core_products": made.ptx.count("mma.sync") + made.ptx.count("wgmma.mma_async"),
        "wgmma": made.ptx.count("wgmma.mma_async"),
    }


def main() -> None:
    found = {}
    for sm in map(int, sys.argv[1:]):
        for cache in CACHES:
            fp8 = cache == "fp8e4nv"
            if fp8 and sm < 89:
                continue  # no such conversion
            pools = {"keys": cache, "values": cache, **TABLES}
            for kernel, pointers, constants, cut in (
                (
                    decode,
                    {"query": "bf16", "partial": "fp32", "summary": "fp32"},
                    {"TOKENS": 1, "QUERIES": 16, "ROWS": 64, "GROUP": 4},
                    tiling.decode_tiling(sm, fp8=fp8),
                ),
                (
                    prefill,
                    {"query": "bf16", "out": "bf16"},
                    {"QUERIES": tiling.prefill_tiling(sm, fp8=fp8).queries, "GROUP": 4},
                    tiling.prefill_tiling(sm, fp8=fp8),
                ),
                (write, {"new_keys": "bf16", "new_values": "bf16"}, {"TOKENS": 16}, None),
            ):
                tile = {"TILE": cut.tile} if cut else {}
                made = ahead.compile_kernel(
                    kernel, pools | pointers, {**HEADS, "PAGE": 64, **constants, **tile}, sm=sm,
                    num_warps=cut.num_warps if cut else 4,
                    num_stages=cut.num_stages if cut else 1,
                )  # fmt: skip
                found[f"{kernel.__name__} {cache} sm_{sm}"] = usage(made)
        pointers = {"partial": "fp32", "summary": "fp32", "out": "bf16", **TABLES}
        constants = {"TOKENS": 1, "TILE": 64, "ROWS": 64, "GROUP": 4}
        made = ahead.compile_kernel(
            merge, pointers, {**HEADS, **constants, "SEGMENTS": tiling.MERGED_AT_ONCE}, sm=sm,
            num_warps=4, num_stages=1,
        )  # fmt: skip
        found[f"merge sm_{sm}"] = usage(made)
    print(json.dumps(found))


main()
