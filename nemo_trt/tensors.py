"""A weight that has not been read: where its bytes lie, or how they come from other weights."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16
from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType

_PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyTensor(ABC):
    """A tensor by name, dtype and shape, which is read in rows. BF16 and FP8 come as their bits.

    Attributes:
        shape: of at least one axis; rows are taken on the first.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows `start` to `stop`, (stop - start, ...), into memory of the caller's own.

        Raises:
            CheckpointError: the bytes are no longer there.
        """

    def read(self) -> NDArray[Any]:
        """The whole tensor; it may be a read-only map of a file."""
        return self.rows(0, self.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef(LazyTensor):
    """A tensor whose bytes lie together in a file.

    Attributes:
        offset: of its first byte in the file.
    """

    path: Path
    offset: int

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows that are read and not mapped: mapped pages would count as this process's memory."""
        found = np.empty((stop - start, *self.shape[1:]), self.dtype.numpy_name)
        if not found.nbytes:
            return found
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.row_bytes)
            into = memoryview(found.data).cast("B")
            while into:
                count = file.readinto(into)
                if not count:
                    raise CheckpointError(f"{self.path} became shorter while it was read.")
                into = into[count:]
        return found

    def read(self) -> NDArray[Any]:
        """A read-only map of the file."""
        if not self.num_bytes:
            return np.empty(self.shape, self.dtype.numpy_name)
        return np.memmap(self.path, self.dtype.numpy_name, "r", self.offset, self.shape)


def row_ranges(tensor: LazyTensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about 8 MB."""
    each = max(1, _PIECE_BYTES // max(tensor.row_bytes, 1))
    for start in range(0, tensor.shape[0], each):
        yield start, min(start + each, tensor.shape[0])


def float32_rows(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a tensor of floating point, not FP8, as fp32."""
    rows = tensor.rows(start, stop)
    return bfloat16.to_float32(rows) if tensor.dtype is DType.BF16 else rows.astype(np.float32)


def same_numbers(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have one shape and hold the same numbers, in whatever dtype."""
    if one.shape != other.shape:
        return False
    if one.dtype is not other.dtype and DType.FP8 in (one.dtype, other.dtype):
        return False
    return all(
        one.rows(*rows).tobytes() == other.rows(*rows).tobytes()
        if one.dtype is other.dtype
        else np.array_equal(float32_rows(one, *rows), float32_rows(other, *rows))
        for rows in row_ranges(one)
    )


def renamed(tensor: LazyTensor, name: str) -> LazyTensor:
    """The same tensor under another name."""
    return replace(tensor, name=name)
