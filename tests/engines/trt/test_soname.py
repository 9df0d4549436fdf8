"""The library without code that TensorRT-RTX's parser is given."""

import ctypes
import platform
from pathlib import Path

import pytest

from nemo_trt.engines.trt.soname import empty_library
from nemo_trt.errors import MachineError

pytestmark = pytest.mark.unit


def test_it_is_found_by_its_name_and_gives_what_it_needs(tmp_path: Path) -> None:
    name = "libnemo_trt_probe.so.7"
    with pytest.raises(OSError, match="cannot open"):
        ctypes.CDLL(name)
    path = tmp_path / "any name"
    path.write_bytes(empty_library(name, "libm.so.6", platform.machine()))
    kept = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    found = ctypes.CDLL(name)  # no such file: the name of the library that is loaded
    found.cos.restype, found.cos.argtypes = ctypes.c_double, [ctypes.c_double]
    assert found.cos(0.0) == 1.0
    del kept


def test_what_it_needs_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(empty_library("libany.so", "libnowhere.so.3", platform.machine()))
    with pytest.raises(OSError, match=r"libnowhere\.so\.3"):
        ctypes.CDLL(str(path))


def test_another_machine_is_refused() -> None:
    with pytest.raises(MachineError, match="riscv64"):
        empty_library("liba.so", "libb.so", "riscv64")
