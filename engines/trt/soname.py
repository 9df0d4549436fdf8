"""A library that is found under another name: what TensorRT-RTX's ONNX parser needs for plugins.

To look for plugins the parser opens `libtensorrt_rtx.so`, and ends the process where that is not
found. The wheel holds `libtensorrt_rtx.so.1` alone. A library of the first name that needs the
second, loaded before, is found instead: opening it gives the symbols of both. It holds no code, so
it is written here, by the format of the System V ABI (gABI 4.1, chapters 4 and 5).
"""

import ctypes
import platform
import re
import struct
import tempfile
from pathlib import Path

from nemo_trt.errors import MachineError

WANTED = "libtensorrt_rtx.so"
_MACHINES = {"x86_64": 62, "aarch64": 183}  # EM_X86_64, EM_AARCH64
_HEADER, _SEGMENT, _ENTRY, _SYMBOL = 64, 56, 16, 24  # bytes
_PAGE = 0x10000
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_READ_WRITE = 6
_NULL, _NEEDED, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 0, 1, 5, 6, 10, 11, 14
_loaded: list[ctypes.CDLL] = []


def make_parser_find_plugins() -> None:
    """Load the library, once a process. TensorRT-RTX must have been imported.

    Raises:
        MachineError: TensorRT-RTX is not loaded, or this machine loads no such library.
    """
    if _loaded:
        return
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    found = re.search(rf"/({re.escape(WANTED)}\.\d+)\S*$", maps, re.MULTILINE)
    if found is None:
        raise MachineError(f"{WANTED} must be loaded before plugins are looked for.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WANTED
        path.write_bytes(empty_library(WANTED, found[1], platform.machine()))
        try:
            _loaded.append(ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL))
        except OSError as error:
            raise MachineError(f"{WANTED} cannot be given to TensorRT's parser: {error}") from error


def empty_library(soname: str, needed: str, machine: str) -> bytes:
    """An ELF library without code.

    Args:
        soname: its name.
        needed: the library that is loaded with it.
        machine: "x86_64" or "aarch64".

    Raises:
        MachineError: for another machine.
    """
    if machine not in _MACHINES:
        raise MachineError(f"Engines with plugins need x86_64 or aarch64, got {machine}.")
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    segments = 3
    symbols = _HEADER + segments * _SEGMENT
    dynamic = symbols + _SYMBOL  # the one symbol is the null symbol
    entries = [
        (_SONAME, 1),
        (_NEEDED, 2 + len(soname)),
        (_STRTAB, 0),
        (_SYMTAB, symbols),
        (_STRSZ, len(strings)),
        (_SYMENT, _SYMBOL),
        (_NULL, 0),
    ]
    text = dynamic + len(entries) * _ENTRY
    entries[2] = (_STRTAB, text)
    size = text + len(strings)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",  # 64 bits, little-endian
        3, _MACHINES[machine], 1, 0, _HEADER, 0, 0, _HEADER, _SEGMENT, segments, 0, 0, 0,
    )  # fmt: skip

    def segment(kind: int, offset: int, length: int, alignment: int) -> bytes:
        return struct.pack(
            "<IIQQQQQQ", kind, _READ_WRITE, offset, offset, offset, length, length, alignment
        )

    return b"".join(
        (
            header,
            segment(_LOAD, 0, size, _PAGE),
            segment(_DYNAMIC, dynamic, len(entries) * _ENTRY, 8),
            segment(_STACK, 0, 0, 16),
            bytes(_SYMBOL),
            *(struct.pack("<QQ", *entry) for entry in entries),
            strings,
        )
    )
