"""Git LFS pointers: small text files in the place of large ones that were not fetched."""

from pathlib import Path

from nemo_trt.errors import CheckpointError

_START = b"version https://git-lfs.github.com/spec/"


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a Git LFS pointer."""
    return start.startswith(_START)


def require_content(path: Path) -> None:
    """Refuse a Git LFS pointer in place of the file itself.

    Raises:
        CheckpointError: the file is a pointer.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(len(_START))
    if is_pointer(start):
        raise CheckpointError(
            f"{path} must be the file itself, got a Git LFS pointer to it. Fetch it: git lfs pull."
        )
