"""Reads the layout of safetensors files (never their weights) and writes such files in a stream.

Format: https://huggingface.co/docs/safetensors: 8 bytes little-endian header length, JSON header,
then the tensors' bytes without gaps. Offsets of tensors are what external data needs, and no
library tells them.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nemo_trt.errors import CheckpointError
from nemo_trt.lfs import require_content
from nemo_trt.precision import SAFETENSORS_DTYPES, DType
from nemo_trt.shown import shown
from nemo_trt.tensors import TensorRef

MAX_HEADER_BYTES = 8 * 2**20  # the format allows 100 MB; a thousand layers take 1 MB
_MAX_AXES = 8
_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


def read_layout(path: Path) -> dict[str, TensorRef]:
    """Return every tensor of a safetensors file by name, in file order. Reads the header alone.

    Raises:
        CheckpointError: the file is missing, truncated or not a well-formed safetensors file.
    """
    try:
        file_bytes = path.stat().st_size
        require_content(path)
        with path.open("rb") as file:
            entries, data_start = _read_header(file, file_bytes, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    refs = [_tensor_ref(name, entry, data_start, path) for name, entry in entries.items()]
    refs.sort(key=lambda ref: (ref.offset, ref.num_bytes))
    expected = data_start
    for ref in refs:
        if ref.offset != expected:
            raise CheckpointError(
                f"{path} must hold its tensors without gaps or overlaps, but {ref.name} starts at "
                f"byte {ref.offset} instead of {expected}. The file is corrupt; fetch it again."
            )
        expected += ref.num_bytes
    if expected != file_bytes:
        raise CheckpointError(
            f"{path} must be {expected} bytes long by its header, got {file_bytes}. "
            "The file is truncated or corrupt; fetch it again."
        )
    return {ref.name: ref for ref in refs}


def _read_header(file: BinaryIO, file_bytes: int, path: Path) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise CheckpointError(f"{path} must start with an 8-byte header length; it is truncated.")
    (header_bytes,) = struct.unpack("<Q", prefix)
    if header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > file_bytes:
        raise CheckpointError(
            f"{path} states a header of {header_bytes} bytes, more than the file holds or a "
            f"model needs ({MAX_HEADER_BYTES}). It is truncated or no safetensors file."
        )
    try:
        entries = json.loads(file.read(header_bytes), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has an unreadable safetensors header: {error}.") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} has a safetensors header that is no JSON object.")
    entries.pop("__metadata__", None)
    return entries, 8 + header_bytes


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice")
    return result


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor_ref(name: str, entry: object, data_start: int, path: Path) -> TensorRef:
    where = f"Tensor {name[:200]} in {path}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise CheckpointError(f"{where} must state dtype, shape and data_offsets.")
    dtype = SAFETENSORS_DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise CheckpointError(
            f"{where} must be one of {', '.join(SAFETENSORS_DTYPES)}, got {shown(entry['dtype'])}. "
            "Quantised checkpoints of this kind are not read; use the BF16 one."
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > _MAX_AXES or not all(map(_is_count, shape)):
        raise CheckpointError(f"{where} must have a shape of counts, got {shown(shape)}.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise CheckpointError(f"{where} must have two data_offsets, got {shown(offsets)}.")
    num_bytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != num_bytes:
        raise CheckpointError(
            f"{where} must take {num_bytes} bytes by its shape, got {offsets[1] - offsets[0]}."
        )
    return TensorRef(
        name=name,
        path=path,
        offset=data_start + offsets[0],
        dtype=dtype,
        shape=tuple(shape),
    )


def encode_header(layout: Iterable[tuple[str, DType, tuple[int, ...]]]) -> tuple[bytes, int]:
    """The first bytes of a safetensors file, and how many bytes of tensors must follow them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in layout:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def write_stream(
    path: Path,
    layout: Iterable[tuple[str, DType, tuple[int, ...]]],
    chunks: Iterator[bytes | memoryview],
) -> None:
    """Write a safetensors file whose bytes come in pieces, in the order of `layout`.

    Memory: one piece.

    Raises:
        ValueError: the pieces do not add up to what the layout states.
    """
    header, num_bytes = encode_header(layout)
    written = 0
    with path.open("wb") as file:
        file.write(header)
        for chunk in chunks:
            written += file.write(chunk)
    if written != num_bytes:
        raise ValueError(f"{path} needs {num_bytes} bytes of tensors, got {written}")
