"""Atomic writes: a reader sees the old file or folder or the new one, whole, and never a part.

What is written stands under `.NAME.partial` beside NAME until it is complete. The kernel locks it
(flock) for the process that writes it, so that a run that lives is told from what a killed one
left, across PID namespaces too. The next run on the same target removes what was left.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_trt.errors import ExportError, StateError

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_MAX_NAME_BYTES = 255
_SUFFIX = ".partial"


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` in one step. Waits while another process writes the same file.

    Missing parent folders are created, as by every other function here.

    Raises:
        IsADirectoryError: `target` is a folder.
    """
    write_bytes(target, text.encode())


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` in one step; see `write_text`."""
    with _new_file(target, wait=True, replace=True) as temporary:
        temporary.write_bytes(data)


@contextmanager
def new_file(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty file beside `target` that becomes `target` when the block ends well.

    Args:
        replace: whether `target` may exist; a symbolic link is followed.

    Raises:
        ExportError: `target` exists and may not be replaced.
        StateError: another run writes `target`.
        IsADirectoryError: `target` is a folder.
        OSError: the disk is full or the folder cannot be written; it names a file.
    """
    with _new_file(target, wait=False, replace=replace) as temporary:
        yield temporary


@contextmanager
def _new_file(target: Path, *, wait: bool, replace: bool) -> Iterator[Path]:
    target = _real(target)
    temporary = _temporary(target)
    with _naming(target):
        if replace and target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        if temporary.is_dir():  # of a killed run that wrote a folder of this name
            os.close(_lock_directory(temporary, target))
            temporary.rmdir()
        lock = _lock(temporary, target, os.O_RDWR | os.O_CREAT, wait)
        with _cleaning(temporary, [lock]):
            os.ftruncate(lock, 0)
            _require_replaceable(target, replace)
            yield temporary
            _sync(temporary)
            _put(temporary, target, replace)
            _sync(target.parent)


@contextmanager
def new_directory(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder beside `target` that becomes `target` when the block ends well.

    An existing `target` is exchanged in one step and then removed. When the block raises, the new
    folder is removed and `target` stays as it was.

    Args:
        replace: whether `target` may exist; a symbolic link is followed.

    Raises:
        ExportError: `target` exists and may not be replaced.
        StateError: another run writes `target`.
        NotADirectoryError: `target` is a file.
        OSError: the disk is full or the folder cannot be written; it names a file.
    """
    target = _real(target)
    temporary = _temporary(target)
    with _naming(target):
        if replace and target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        locks = [_lock_directory(temporary, target)]
        with _cleaning(temporary, locks):
            _recover(target)
            _require_replaceable(target, replace)
            yield temporary
            for folder, _, files in os.walk(temporary):
                for path in (*files, ""):
                    _sync(Path(folder, path))
            if target.is_dir():  # it gets the temporary name, under which no other run may take it
                locks.append(_lock(target, target, os.O_RDONLY, wait=False))
            _put(temporary, target, replace)
            _sync(target.parent)


@contextmanager
def _cleaning(temporary: Path, locks: list[int]) -> Iterator[None]:
    """Remove what the block left under the temporary name, then unlock.

    An error of the block is raised before one of the removal, which becomes a note of it.
    """
    try:
        try:
            yield
        except BaseException as error:
            try:
                _remove_locked(temporary, locks)
            except OSError as left:
                error.add_note(f"{temporary} could not be removed: {left}")
            raise
        _remove_locked(temporary, locks)
    finally:
        for lock in locks:
            os.close(lock)


def _remove_locked(temporary: Path, locks: list[int]) -> None:
    """Remove the temporary file or folder if it is one that this run locked."""
    if any(_is_locked(temporary, lock) for lock in locks):
        _remove(temporary)


def require_writable(target: Path) -> None:
    """Refuse, before the work, a target that could not be written after it.

    Parent folders may be missing: the writers create them.

    Raises:
        ExportError: the nearest parent that exists is no folder, or cannot be written.
    """
    folder = next(path for path in _real(target).parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError(
            f"{folder} must be a folder that can be written, for {target.name}. Choose another "
            "place or change its permissions."
        )


def require_free_disk(target: Path, num_bytes: int, remedy: str = "") -> None:
    """Refuse, before the work, a disk on which the target would not fit.

    Args:
        remedy: a sentence on what else helps than free space.

    Raises:
        ExportError: less than `num_bytes` are free.
    """
    existing = next(path for path in (target, *_real(target).parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise ExportError(
            f"{existing} must have {num_bytes / 1e9:.2f} GB free for {target.name}, got "
            f"{free / 1e9:.2f} GB. Free some or choose another disk. {remedy}".rstrip()
        )


def _real(target: Path) -> Path:
    """Where a target lies: a symbolic link is followed, so that it stays one."""
    target = target.absolute()
    return target.resolve() if target.is_symlink() else target


def _temporary(target: Path) -> Path:
    """The hidden name of what is to become `target`, of a length that file systems allow."""
    name = os.fsencode(target.name)
    if len(name) + len(_SUFFIX) + 1 > _MAX_NAME_BYTES:
        name = name[:100].decode(errors="ignore").encode() + _digest(name)
    return target.parent / f".{os.fsdecode(name)}{_SUFFIX}"


def _digest(name: bytes) -> bytes:
    return hashlib.sha256(name).hexdigest().encode()


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """An error of the operating system without a file's name, such as a full disk, gets one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(target)
        raise


def _lock_directory(temporary: Path, target: Path) -> int:
    """A new, locked folder; what a killed run left under its name is removed."""
    while True:
        try:
            temporary.mkdir()
            left = False
        except FileExistsError:
            left = True
        try:
            lock = _lock(temporary, target, os.O_RDONLY, wait=False)
        except FileNotFoundError:  # another run has just ended or cleaned up
            continue
        if not left:
            return lock
        try:
            _remove(temporary)
        finally:
            os.close(lock)


def _lock(temporary: Path, target: Path, flags: int, wait: bool) -> int:
    """Open and lock `temporary`; closing the descriptor, or the end of the process, unlocks it.

    Raises:
        StateError: another run holds the lock, and `wait` is false.
    """
    while True:
        lock = os.open(temporary, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StateError(
                f"{target} is being written by another run. Wait until it has ended, or name "
                "another target."
            ) from None
        except BaseException:
            os.close(lock)
            raise
        if _is_locked(temporary, lock):
            return lock
        os.close(lock)  # it became a target, or was removed, while this run waited


def _is_locked(temporary: Path, lock: int) -> bool:
    """Whether the name still stands for what was locked."""
    try:
        return os.path.samestat(temporary.lstat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _require_replaceable(target: Path, replace: bool) -> None:
    if not replace and target.exists():
        raise ExportError(f"{target} must not exist yet. Use --force to replace it.")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _put(temporary: Path, target: Path, replace: bool) -> None:
    """Give what is complete its name; the folder that had it keeps the temporary one."""
    if not replace:
        if not _renameat2(temporary, target, _RENAME_NOREPLACE):
            _require_replaceable(target, replace)
            temporary.rename(target)
    elif target.is_dir() and temporary.is_dir():
        _exchange(temporary, target)
    else:
        temporary.replace(target)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step where the kernel can; else `other` is replaced in two."""
    if _renameat2(one, other, _RENAME_EXCHANGE):
        return
    aside = _aside(other)
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _recover(target: Path) -> None:
    """Undo an exchange that was cut short where the kernel cannot do it in one step."""
    aside = _aside(target)
    if aside.is_dir() and target.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.is_dir():
        aside.rename(target)


def _aside(target: Path) -> Path:
    """Where the old folder stands for a moment."""
    return _temporary(_temporary(target))


def _renameat2(one: Path, other: Path, flags: int) -> bool:
    """Rename with flags; whether that was done.

    Raises:
        ExportError: `other` exists and may not be replaced.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if not function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags):
        return True
    if ctypes.get_errno() == errno.EEXIST:
        raise ExportError(f"{other} must not exist yet; another run has just written it.")
    return False


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
