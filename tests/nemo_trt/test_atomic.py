"""Atomic writes: a reader sees the old or the new, whole, and a failure leaves the old."""

import os
import threading
from pathlib import Path

import pytest

from nemo_trt import atomic

pytestmark = pytest.mark.unit


def fill(folder: Path, text: str) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(text)


def test_a_reader_never_misses_a_folder_that_is_being_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with atomic.new_directory(target) as folder:
        fill(folder, "0")
    missed, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            if not target.is_dir():
                missed.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 200):
        with atomic.new_directory(target) as folder:
            fill(folder, str(number))
    stop.set()
    reader.join()
    assert not missed
    assert (target / "b").read_text() == "199"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_block_that_raises_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with atomic.new_directory(target) as folder:
        fill(folder, "old")
    with pytest.raises(RuntimeError), atomic.new_directory(target) as folder:
        fill(folder, "new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_kernel_that_cannot_exchange_gets_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    for text in ("old", "new"):
        with atomic.new_directory(tmp_path / "target") as folder:
            fill(folder, text)
    assert (tmp_path / "target" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    atomic.write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "report"
    target.mkdir()
    (target / "theirs").write_text("kept")
    for _ in range(2):
        with pytest.raises(IsADirectoryError, match="report"):
            atomic.write_text(target, "x")
        with pytest.raises(IsADirectoryError, match="report"), atomic.new_file(target):
            raise AssertionError("the block must not be entered")
    assert (target / "theirs").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_does_not_take_the_place_of_a_file(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.write_text("kept")
    for _ in range(2):
        with pytest.raises(NotADirectoryError, match="bundle"), atomic.new_directory(target):
            raise AssertionError("the block must not be entered")
    assert target.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_made_while_a_file_is_written_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "report"
    with pytest.raises(IsADirectoryError), atomic.new_file(target):
        target.mkdir()
        (target / "theirs").write_text("kept")
    assert (target / "theirs").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_that_cannot_be_removed_hides_no_error_and_stays_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    target = tmp_path / "target"
    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "rmtree", refuse)
        with pytest.raises(RuntimeError, match="failed") as caught, atomic.new_directory(target):
            raise RuntimeError("the work failed")
        assert any("could not be removed" in note for note in caught.value.__notes__)
    with atomic.new_directory(target) as folder:
        fill(folder, "new")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "rmtree", refuse)
        with pytest.raises(PermissionError), atomic.new_directory(target) as folder:
            fill(folder, "newer")
    assert (target / "a").read_text() == "newer"
    with atomic.new_directory(target) as folder:
        fill(folder, "newest")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_failed_second_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
    target = tmp_path / "target"
    with atomic.new_directory(target) as folder:
        fill(folder, "old")
    rename = Path.rename

    def refuse(path: Path, other: Path) -> Path:
        if path == atomic._temporary(target):
            raise OSError(28, "No space left on device", str(path))
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"), atomic.new_directory(target) as folder:
        fill(folder, "new")
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
