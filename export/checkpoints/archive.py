"""The files of a folder or of a tar archive, which is read in place and never unpacked."""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from nemo_trt.errors import CheckpointError

from .blob import Blob, FileBlob, GzipBlob, GzipStream

_GZIP = b"\x1f\x8b"
_TAR_MAGIC_AT = 257
_MAX_MEMBERS = 65536
_MAX_READ_BYTES = 2**20  # of a header: names and attributes, which tarfile reads whole


def is_archive(path: Path) -> bool:
    """Whether `path` is a file that starts like a tar or gzip file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(512)
    return start.startswith(_GZIP) or start[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar"


def open_archive(path: Path) -> Mapping[str, Blob]:
    """The regular files of a folder or tar, by their relative names with forward slashes.

    Raises:
        CheckpointError: the archive is damaged, or a member would leave it, links, or is larger
            than the archive.
    """
    return _folder(path) if path.is_dir() else _tar(path)


def _folder(path: Path) -> Mapping[str, Blob]:
    found: dict[str, Blob] = {}
    for folder, _, files in os.walk(path):
        for name in files:
            file = Path(folder, name)
            relative = file.relative_to(path).as_posix()
            found[relative] = FileBlob(file, 0, file.stat().st_size, str(file))
    return found


def _tar(path: Path) -> Mapping[str, Blob]:
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    stream = GzipStream(path) if packed else None
    size = path.stat().st_size
    whole: Blob = (
        GzipBlob(path, 0, 2**62, str(path), stream)
        if stream
        else FileBlob(path, 0, size, str(path))
    )
    found: dict[str, Blob] = {}
    try:
        with (
            whole.open() as source,
            tarfile.open(fileobj=_BoundedReads(source, path), mode="r:") as tar,
        ):
            for number, member in enumerate(tar):
                if number >= _MAX_MEMBERS:
                    raise CheckpointError(f"{path} must hold at most {_MAX_MEMBERS} files.")
                if member.isdir():
                    continue
                name = _safe_name(member, path)
                if name in found:
                    raise CheckpointError(f"{path} holds {name} twice.")
                part = whole.part(member.offset_data, member.size)
                label = f"{path}:{name}"
                found[name] = (
                    GzipBlob(path, part.offset, part.num_bytes, label, stream)
                    if stream
                    else FileBlob(path, part.offset, part.num_bytes, label)
                )
    except (
        tarfile.TarError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{path} must be an intact tar archive, got: {error}. Fetch it again."
        ) from error
    if not found:
        raise CheckpointError(f"{path} must be a tar archive with files in it, got none.")
    return found


class _BoundedReads(io.RawIOBase):
    """A file of which no part is read that is larger than a header can be."""

    def __init__(self, source: BinaryIO, path: Path) -> None:
        self._source, self._path = source, path

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _MAX_READ_BYTES:
            raise CheckpointError(
                f"{self._path} must have headers of at most {_MAX_READ_BYTES} bytes, got {count}. "
                "It is corrupt or hostile."
            )
        return self._source.read(count)


def _safe_name(member: tarfile.TarInfo, path: Path) -> str:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise CheckpointError(f"{path} holds {member.name!r}, which would leave the archive.")
    if not member.isreg() or member.issparse():
        raise CheckpointError(
            f"{path} holds {member.name!r}, which is no regular file: links, devices and sparse "
            "files are refused."
        )
    return str(name)
