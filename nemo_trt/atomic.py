"""Atomic writes: a reader sees the old file or folder or the new one, whole, and never a part."""

import ctypes
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def temporary_sibling(target: Path) -> Path:
    """A free hidden name beside `target`, on the same file system; it names this process."""
    return target.parent / f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` in one step."""
    temporary = temporary_sibling(target)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that becomes `target` when the block ends well.

    An existing `target` is exchanged in one step and then removed. When the block raises, the new
    folder is removed and `target` stays as it was. A killed process leaves a hidden
    `.NAME.PID-*.partial` folder at the most, which the next call for the same target removes.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = temporary_sibling(target)
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            _exchange(temporary, target)
        else:
            temporary.rename(target)
    finally:
        _remove(temporary)


def _remove_leftovers(target: Path) -> None:
    for leftover in target.parent.glob(f".{target.name}.*-*.partial"):
        process = leftover.name.split(".")[-2].split("-")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc").exists():
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two paths: in one step where the kernel can (renameat2), else in two renames."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None and not renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    ):
        return
    aside = temporary_sibling(other)
    other.rename(aside)
    one.rename(other)
    aside.rename(one)
