"""What ONNX Runtime's CUDA provider makes of a bundle, asked on a machine without a GPU.

    python tools/pretend_cuda.py BUNDLE --site-packages DIR [--include CUDA/include]

DIR is of an environment with `pip install 'onnxruntime-gpu[cuda,cudnn]'` and this Python's version.
A CUDA that computes nothing (pretend_cuda.c) is loaded before the real one. The real provider then
opens the session, so that it refuses a node that it has no kernel for, captures a decode step, and
says what is copied within it. Numbers it cannot give.
"""

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("pretend_cuda.c")
ROWS, CAPACITY = 3, 1024


class HostDevice:
    """`nemo_trt.engines.device.Device` in host memory."""

    sm, stream = 90, 4096

    def __init__(self) -> None:
        self.live: dict[int, np.ndarray] = {}

    def allocate(self, num_bytes: int) -> int:
        memory = np.zeros(num_bytes, np.uint8)
        self.live[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free(self, address: int) -> None:
        del self.live[address]

    def free_bytes(self) -> int:
        return 80 * 2**30

    def pin(self, array: np.ndarray) -> None:
        pass

    def upload(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def close(self) -> None:
        pass


def inside(bundle: Path) -> None:
    """With the pretended CUDA loaded: open, decode, prefill, decode again."""
    import onnxruntime as ort

    from nemo_trt.engines.cuda.provider import CudaProvider
    from nemo_trt.engines.cuda.session import CudaSession

    ort.preload_dlls = lambda: None  # they are found by the loader's path
    one = np.zeros((ROWS, 1), np.int64)
    with CudaSession(
        bundle,
        device=HostDevice(),  # type: ignore[arg-type]
        provider=CudaProvider(),
        max_batch=ROWS,
        max_seq_len=CAPACITY,
    ) as session:
        config = session.config
        print(f"ONNX Runtime {ort.__version__}: every node is on CUDA")
        row = config.num_kv_heads * CAPACITY * config.head_dim * 2
        print(f"cache of one layer: {ROWS * row} bytes each for keys and values")
        for index in range(3):
            session.step(one, np.full(ROWS, index), one)
        session.step(np.zeros((ROWS, 9), np.int64), np.zeros(ROWS, np.int64), one)
        session.step(one, np.full(ROWS, 9), one)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--site-packages", type=Path)
    parser.add_argument("--include", default="/usr/local/cuda/include", help="CUDA's headers")
    parser.add_argument("--cc", default="gcc")
    arguments = parser.parse_args()
    if arguments.site_packages is None:
        inside(arguments.bundle)
        return 0
    site = arguments.site_packages.resolve()
    libraries = sorted({str(file.parent) for file in site.glob("nvidia/*/lib/*.so*")})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("pretend.so", "libcuda.so.1", "libcudnn.so.9"):
            command = [
                arguments.cc,
                "-w",
                "-shared",
                "-fPIC",
                f"-I{arguments.include}",
                str(SOURCE),
            ]
            subprocess.run([*command, f"-Wl,-soname,{file}", "-o", str(folder / file)], check=True)
        (folder / "onnxruntime").symlink_to(site / "onnxruntime")
        environment = os.environ | {
            "LD_PRELOAD": str(folder / "pretend.so"),
            "LD_LIBRARY_PATH": ":".join([name, *libraries]),
            "PYTHONPATH": name,
            "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0",  # cuDNN's plans need a real device
        }
        done = subprocess.run(
            [sys.executable, __file__, str(arguments.bundle)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    print(done.stdout, end="")
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return done.returncode
    products = re.findall(r"captured, (\d+) products", done.stderr)
    print(f"captured decode steps: {len(products)}, with {', '.join(products)} cuBLAS products")
    print(f"graphs launched: {done.stderr.count('graph launched')}")
    copies = Counter(re.findall(r"copy (\d+) kind (\d)", done.stderr))
    for (size, kind), count in sorted(copies.items()):
        where = {"1": "from the host", "2": "to the host", "3": "on the device"}[kind]
        print(f"copies within a captured step: {count} of {size} bytes {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
