"""Reads what torch.save wrote, in place: a zip whose pickle says where each tensor's bytes lie.

Format: PyTorch's serialization notes; entries are stored, not deflated, so that their bytes can be
mapped. torch.load(weights_only=True) reads such a file too, but not from the middle of an archive.
"""

import math
import struct
import zipfile
import zlib
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.shown import shown
from nemo_trt.tensors import LazyTensor

from .blob import Blob
from .torch_pickle import TORCH_DTYPES, record_class, size_of, unpickle

_MAX_PICKLE_BYTES = 4 * 2**20
_MAX_KEY = 100  # characters of a storage's name
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_STORAGES = {
    "torch.BFloat16Storage": DType.BF16,
    "torch.HalfStorage": DType.FP16,
    "torch.FloatStorage": DType.FP32,
    "torch.LongStorage": DType.INT64,
}
_BYTES = ("torch.ByteStorage", "torch.UntypedStorage", "torch.storage.UntypedStorage")


class Opaque:
    """A tensor or object that is no weight; its place is known, nothing of it is read."""


def read_torch_zip(blob: Blob) -> Any:
    """What was saved, with a `LazyTensor` for every tensor of weights and `Opaque` for others.

    Raises:
        CheckpointError: the file is damaged, asks for a name that is not allowed, or holds a
            tensor whose numbers do not lie together.
    """
    try:
        with blob.open() as file, zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) != 1 or len(entries) != len(archive.infolist()):
                raise CheckpointError(
                    f"{blob.label} must be a file of torch.save with one data.pkl, got "
                    f"{len(pickles)}."
                )
            prefix = pickles[0].removesuffix("data.pkl")
            if entries[pickles[0]].file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{blob.label} must have a pickle of at most {_MAX_PICKLE_BYTES} bytes, got "
                    f"{entries[pickles[0]].file_size}."
                )
            order = entries.get(f"{prefix}byteorder")
            if order and (order.file_size > 16 or archive.read(order) != b"little"):
                raise CheckpointError(f"{blob.label} must be little-endian.")
            data = archive.read(pickles[0])
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
    ) as error:
        raise CheckpointError(
            f"{blob.label} must be a zip of torch.save, got: {error}. Old files without a zip are "
            "pickles throughout and are not read."
        ) from error

    parts: dict[str, Blob] = {}

    def storage(pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise CheckpointError(f"{blob.label} holds a persistent id that is no storage.")
        _, dtype, key, _, count = pid
        if not isinstance(dtype, DType):
            return Opaque()
        if not isinstance(key, str) or len(key) > _MAX_KEY:
            raise CheckpointError(f"{blob.label} names a storage {shown(key)}.")
        info = entries.get(f"{prefix}data/{key}")
        if info is None or not isinstance(count, int) or info.file_size != count * dtype.itemsize:
            raise CheckpointError(f"{blob.label} lacks the bytes of storage {shown(key)}.")
        if key not in parts:
            parts[key] = _stored_part(blob, info)
        return dtype, parts[key]

    names: dict[str, Any] = {
        **_STORAGES,
        **dict.fromkeys(_BYTES, Opaque),
        "torch._utils._rebuild_tensor_v2": lambda *args: _tensor(blob.label, *args),
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch.Size": size_of,
        "_io.BytesIO": record_class("BytesIO"),  # Transformer Engine's extra state, of
        "_codecs.encode": record_class("encode"),  # which nothing is needed
        **{f"torch.{name}": name for name in TORCH_DTYPES},
    }
    return unpickle(data, blob.label, names, storage)


def _stored_part(blob: Blob, info: zipfile.ZipInfo) -> Blob:
    """The bytes of an entry, which must not be packed."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise CheckpointError(f"{info.filename} in {blob.label} must be stored as it is.")
    header = blob.part(info.header_offset, _LOCAL_HEADER.size).contents(_LOCAL_HEADER.size)
    magic, *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    if magic != b"PK\3\4":
        raise CheckpointError(f"{info.filename} in {blob.label} has no header of its own.")
    start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    return blob.part(start, info.file_size)


def _tensor(where: str, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, tuple):
        return Opaque()
    dtype, blob = storage
    shape, steps = tuple(size), tuple(stride)
    if len(shape) > 8 or not all(
        isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *shape, *steps)
    ):
        raise CheckpointError(f"{where} holds a tensor of the impossible shape {shown(shape)}.")
    packed, step = [], 1
    for length in reversed(shape):
        packed.append(step)
        step *= length
    if math.prod(shape) and any(
        length > 1 and given != wanted
        for length, given, wanted in zip(shape, steps, reversed(packed), strict=True)
    ):
        raise CheckpointError(
            f"{where} holds a tensor of shape {shape} with strides {steps}: its numbers must lie "
            "together. Save it contiguous."
        )
    found: LazyTensor = blob.tensor(dtype, shape, offset * dtype.itemsize, "of torch.save")
    return found
