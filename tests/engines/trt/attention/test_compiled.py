"""Every kernel compiled for every architecture, without a GPU: it fits, and nothing spills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

COMPILE = Path(__file__).parent / "compile_all.py"
SHARED_KIB = {80: 163, 89: 99, 90: 227, 120: 99}
"""A block's most, by architecture: CUDA C++ Programming Guide, Technical Specifications."""


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    """Kernel and cache dtype -> what it takes; by a process in which Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, COMPILE, *map(str, SHARED_KIB)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def test_every_kernel_is_compiled_for_every_architecture(
    compiled: dict[str, dict[str, int]],
) -> None:
    caches = [
        (sm, cache) for sm in SHARED_KIB for cache in ("bf16", "fp8") if (sm, cache) != (80, "fp8")
    ]
    kernels = ("write", "decode", "merge", "prefill")
    assert set(compiled) == {
        f"{kernel} {cache} sm_{sm}" for sm, cache in caches for kernel in kernels
    }


def test_every_kernel_fits_and_spills_nothing(compiled: dict[str, dict[str, int]]) -> None:
    for name, used in compiled.items():
        sm = int(name.rpartition("_")[2])
        assert used["shared_bytes"] <= SHARED_KIB[sm] * 1024, name
        assert used["stack_bytes"] == used["local_bytes"] == 0, (name, used)
        assert used["registers"] <= 255, name


def test_decode_leaves_room_for_two_blocks_a_multiprocessor(
    compiled: dict[str, dict[str, int]],
) -> None:
    """One that waits for memory must leave another to work: on GPUs with 227 KiB."""
    for name, used in compiled.items():
        if name.startswith("decode") and name.endswith("sm_90"):
            assert 2 * (used["shared_bytes"] + 1024) <= 228 * 1024, name
            assert 2 * 128 * used["registers"] <= 65_536, name


def test_products_use_tensor_cores_and_prefill_hoppers_own(
    compiled: dict[str, dict[str, int]],
) -> None:
    for name, used in compiled.items():
        if name.startswith(("decode", "prefill")):
            assert used["tensor_core_products"], name
        if name.startswith("prefill") and name.endswith("sm_90"):
            assert used["wgmma"], name
