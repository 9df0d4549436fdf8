"""Ranges of bytes in files, plain or gzipped, that tensors are read from in place."""

import gzip
import io
import threading
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nemo_trt.errors import CheckpointError, MachineError
from nemo_trt.precision import DType
from nemo_trt.tensors import LazyTensor, TensorRef

_MAX_RATIO = 32
_SPACING = 16 * 2**20  # bytes of a gzipped file between two points where reading can begin


@dataclass(frozen=True, slots=True)
class Blob(ABC):
    """A range of bytes: a file, a member of an archive, or a part of either.

    Attributes:
        label: what errors call it.
    """

    path: Path
    offset: int
    num_bytes: int
    label: str

    @abstractmethod
    def part(self, offset: int, num_bytes: int) -> "Blob":
        """A range of this range."""

    @abstractmethod
    def tensor(self, dtype: DType, shape: tuple[int, ...], offset: int, name: str) -> LazyTensor:
        """A tensor whose bytes start at `offset`."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """The bytes as a file."""

    def contents(self, limit: int) -> bytes:
        """All bytes, of a small blob.

        Raises:
            CheckpointError: there are more than `limit`.
        """
        if self.num_bytes > limit:
            raise CheckpointError(
                f"{self.label} must be at most {limit} bytes long, got {self.num_bytes}. "
                "It is corrupt or not what its name says."
            )
        with self.open() as file:
            data = file.read()
        if len(data) != self.num_bytes:
            raise CheckpointError(f"{self.label} is truncated. Fetch it again.")
        return data

    def require(self, offset: int, num_bytes: int, what: str) -> None:
        """Raise a CheckpointError unless a range lies inside this one."""
        if offset < 0 or num_bytes < 0 or offset + num_bytes > self.num_bytes:
            raise CheckpointError(
                f"{what} must lie within the {self.num_bytes} bytes of {self.label}, got bytes "
                f"{offset} to {offset + num_bytes}. It is truncated or corrupt; fetch it again."
            )


@dataclass(frozen=True, slots=True)
class FileBlob(Blob):
    """A range of a file."""

    def part(self, offset: int, num_bytes: int) -> Blob:
        """See `Blob.part`."""
        self.require(offset, num_bytes, "A part")
        return FileBlob(self.path, self.offset + offset, num_bytes, self.label)

    def tensor(self, dtype: DType, shape: tuple[int, ...], offset: int, name: str) -> LazyTensor:
        """See `Blob.tensor`: the file itself can be pointed into."""
        ref = TensorRef(
            name=name, dtype=dtype, shape=shape, path=self.path, offset=self.offset + offset
        )
        self.require(offset, ref.num_bytes, f"Tensor {name}")
        return ref

    def open(self) -> BinaryIO:
        """See `Blob.open`."""
        file = self.path.open("rb", buffering=0)
        return io.BufferedReader(_Window(file, self.offset, self.num_bytes), 4096)


@dataclass(frozen=True, slots=True)
class GzipBlob(Blob):
    """A range of what a gzipped file holds."""

    stream: "GzipStream"

    def part(self, offset: int, num_bytes: int) -> Blob:
        """See `Blob.part`."""
        self.require(offset, num_bytes, "A part")
        return GzipBlob(self.path, self.offset + offset, num_bytes, self.label, self.stream)

    def tensor(self, dtype: DType, shape: tuple[int, ...], offset: int, name: str) -> LazyTensor:
        """See `Blob.tensor`."""
        tensor = GzipTensor(
            name=name, dtype=dtype, shape=shape, stream=self.stream, offset=self.offset + offset
        )
        self.require(offset, tensor.num_bytes, f"Tensor {name}")
        return tensor

    def open(self) -> BinaryIO:
        """See `Blob.open`."""
        return io.BufferedReader(_Window(self.stream, self.offset, self.num_bytes), 4096)


class GzipStream(io.RawIOBase):
    """Random access to a gzipped file, shared by threads, through an index made on the way."""

    def __init__(self, path: Path) -> None:
        try:
            import indexed_gzip
        except ImportError as error:
            raise MachineError(
                f"{path} is gzipped, which needs the package indexed_gzip. "
                "Install it: pip install indexed_gzip, or unpack the file with gunzip."
            ) from error
        self.path = path
        self._lock = threading.Lock()
        self._most = max(_MAX_RATIO * path.stat().st_size, 2**26)
        self._file: Any = indexed_gzip.IndexedGzipFile(str(path), spacing=_SPACING)

    def read_at(self, offset: int, target: memoryview) -> int:
        """Fill `target` from a position of the unpacked bytes; how much there was."""
        if offset > self._most:
            raise CheckpointError(
                f"{self.path} must not unpack to more than {_MAX_RATIO} times its size: weights do "
                "not. It is hostile; if it is yours, unpack it with gunzip."
            )
        with self._lock:
            try:
                self._file.seek(offset)
                return int(self._file.readinto(target))
            except (OSError, EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise CheckpointError(
                    f"{self.path} is no intact gzip file: {error}. Fetch it again."
                ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class GzipTensor(LazyTensor):
    """A tensor whose bytes lie together in a gzipped file."""

    stream: GzipStream
    offset: int

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`."""
        found = np.empty((stop - start, *self.shape[1:]), self.dtype.numpy_name)
        into, at = memoryview(found.data).cast("B"), self.offset + start * self.row_bytes
        while into:
            count = self.stream.read_at(at, into)
            if not count:
                raise CheckpointError(f"{self.stream.path} ends within {self.name}.")
            into, at = into[count:], at + count
        return found


class _Window(io.RawIOBase):
    """A range of a file as a file of its own."""

    def __init__(self, source: Any, offset: int, num_bytes: int) -> None:
        self._source, self._offset, self._num_bytes = source, offset, num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: self._num_bytes}[whence]
        if base + offset < 0:
            raise OSError(22, "negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, target: Any) -> int:
        wanted = memoryview(target)[: max(self._num_bytes - self._position, 0)]
        if not wanted:
            return 0
        at = self._offset + self._position
        if isinstance(self._source, GzipStream):
            count = self._source.read_at(at, wanted)
        else:
            self._source.seek(at)
            count = self._source.readinto(wanted) or 0
        self._position += count
        return count

    def close(self) -> None:
        if not isinstance(self._source, GzipStream):  # which other windows read too
            self._source.close()
        super().close()
