"""Compiles every kernel for the architectures named, and prints what each takes as JSON."""

import json
import re
import subprocess
import sys
import tempfile

from triton import knobs

from nemo_trt.engines.trt.attention import ahead
from nemo_trt.engines.trt.attention.step import Heads
from nemo_trt.precision import DType

HEADS = Heads(kv_heads=8, group=4, head_dim=128, page=64)


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
        for cache in (DType.BF16, DType.FP8):
            if cache is DType.FP8 and sm < 89:
                continue  # no such conversion
            made = ahead.compile_all(HEADS, sm=sm, rows=64, compute=DType.BF16, cache=cache)
            found |= {f"{name} {cache} sm_{sm}": usage(one) for name, one in made.items()}
    print(json.dumps(found))


main()
