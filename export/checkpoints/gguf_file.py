"""Reads the header of a GGUF file: its fields, and where each tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The package
gguf, which dequantises the weights, reads it too; here offsets are checked, and damage gets a
sentence.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.shown import shown

_MAGIC = b"GGUF"
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
# What a header may hold: its fields or tensors, items of all arrays together, bytes of a text.
_MAX_ENTRIES, _MAX_ITEMS, _MAX_TEXT_BYTES = 65536, 2 * 2**20, 32 * 2**20
# Number format -> its name, numbers a block, bytes a block (ggml.h).
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        kind: key of `TYPES`.
        shape: rows first, as numpy has it; GGUF states it in reverse.
        offset: of its first byte in the file.
    """

    kind: int
    shape: tuple[int, ...]
    offset: int


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """The fields and the tensors of a GGUF file.

    Raises:
        CheckpointError: the file is truncated, of another version, or holds a number format that
            is not read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).read()
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise CheckpointError(
            f"{path} must be an intact GGUF file, got: {error}. It is truncated or corrupt; fetch "
            "it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


class _Reader:
    """A position in the header."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0
        self.items = _MAX_ITEMS

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        magic = self.data[:4]
        self.at = 4
        version = self.scalar("<I")
        if magic != _MAGIC or version not in (2, 3):
            raise CheckpointError(
                f"{self.path} must be a little-endian GGUF file of version 2 or 3, got "
                f"{magic!r} {version}."
            )
        num_tensors, num_fields = self.count(_MAX_ENTRIES), self.count(_MAX_ENTRIES)
        fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self.string()
            if key in fields:
                raise CheckpointError(f"{self.path} states {key} twice.")
            fields[key] = self.value(self.scalar("<I"))
        stated = [self.tensor() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise CheckpointError(f"general.alignment in {self.path} is {shown(alignment)}.")
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in stated:
            if name in tensors:
                raise CheckpointError(f"{self.path} holds {name} twice.")
            tensors[name] = self.placed(name, kind, shape, start + offset)
        return fields, tensors

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def count(self, most: int) -> int:
        """A number of things, each of which takes a byte at least."""
        value = int(self.scalar("<Q"))
        if value > min(most, len(self.data)):
            raise ValueError(
                f"a count of {value} in a file of {len(self.data)} bytes, where {most} are the most"
            )
        return value

    def string(self) -> str:
        length = self.count(_MAX_TEXT_BYTES)
        data = self.data[self.at : self.at + length]
        if len(data) != length:
            raise ValueError("a text that ends behind the file")
        self.at += length
        return data.decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and depth < 4:
            inner, count = self.scalar("<I"), self.count(self.items)
            self.items -= count
            if inner in _SCALARS:
                form = f"<{count}{_SCALARS[inner][1]}"
                values = list(struct.unpack_from(form, self.data, self.at))
                self.at += struct.calcsize(form)
                return values
            return [self.value(inner, depth + 1) for _ in range(count)]
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        raise ValueError(f"a field of the unknown type {kind}")

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.string()
        axes = int(self.scalar("<I"))
        if not 1 <= axes <= 4:
            raise ValueError(f"tensor {name} with {axes} axes")
        lengths = [int(self.scalar("<Q")) for _ in range(axes)]
        return name, int(self.scalar("<I")), tuple(reversed(lengths)), int(self.scalar("<Q"))

    def placed(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> GgufTensor:
        if kind not in TYPES:
            known = ", ".join(kind_name for kind_name, _, _ in TYPES.values())
            raise CheckpointError(
                f"{name} in {self.path} must be one of {known}, got GGML type {kind}."
            )
        _, block, num_bytes = TYPES[kind]
        if not shape[-1] or shape[-1] % block:
            raise CheckpointError(
                f"{name} in {self.path} must have rows of a multiple of {block}, got {shape[-1]}."
            )
        end = offset + math.prod(shape) // block * num_bytes
        if end > len(self.data):
            raise CheckpointError(
                f"{name} must lie within the {len(self.data)} bytes of {self.path}, got bytes "
                f"{offset} to {end}. It is truncated or corrupt; fetch it again."
            )
        return GgufTensor(kind=kind, shape=shape, offset=offset)
