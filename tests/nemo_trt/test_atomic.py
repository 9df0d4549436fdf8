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
