"""Killed at any point: the target is the old one or the new one, and the next run leaves nothing.

A kill is a file-system call that raises and after which every other one raises too, so that no
cleaning up can happen; what the kernel does then, closing descriptors, is done here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nemo_trt import atomic

pytestmark = pytest.mark.unit
CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "open", "ftruncate", "listdir")


class Killed(BaseException):
    """The process is no more."""


@contextmanager
def killed_at(point: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Call number `point` of those that change or open files does not come back."""
    made: list[str] = []
    opened: list[int] = []

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            if len(made) >= point:
                raise Killed
            made.append(name)
            result = call(*args, **options)
            if name == "open":
                opened.append(result)
            return result

        return replacement

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        patch.setattr(atomic, "_renameat2", wrapped("renameat2", atomic._renameat2))
        with suppress(Killed):
            yield made
    for descriptor in opened:
        try:
            os.close(descriptor)
        except OSError:
            continue


def directory(target: Path, text: str) -> None:
    with atomic.new_directory(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text(text)
        (folder / "b").write_text(text)


def file(target: Path, text: str) -> None:
    with atomic.new_file(target) as path:
        path.write_text(text)


def said(target: Path) -> str | None:
    """What the target holds; of a folder, every file the same."""
    if not target.exists():
        return None
    files = [target] if target.is_file() else [target / "inner" / "a", target / "b"]
    (text,) = {path.read_text() for path in files}
    return text


@pytest.mark.parametrize("write", [directory, file, atomic.write_text])
@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("kernel", ["exchanges", "cannot exchange"])
def test_a_kill_at_any_point_loses_nothing_and_the_next_run_leaves_nothing(
    write: Callable[[Path, str], None],
    before: str | None,
    kernel: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kernel == "cannot exchange":
        monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
    left = 0
    for point in range(200):
        place = tmp_path / str(point)
        place.mkdir()
        target = place / "target"
        if before is not None:
            write(target, before)
        with killed_at(point, monkeypatch) as made:
            write(target, "new")
        # Two renames of a folder have a moment in which the next run must undo the first.
        if kernel == "exchanges" or before is None or write is not directory:
            assert said(target) in (before, "new"), point
        left += any(path != target for path in place.iterdir())
        if point > len(made):
            break
        new = atomic.new_directory if write is directory else atomic.new_file
        with pytest.raises(RuntimeError), new(target) as path:
            assert not (list(path.iterdir()) if path.is_dir() else path.read_bytes())
            raise RuntimeError  # a run that fails must not take the old one along
        assert said(target) in (before, "new"), point
        write(target, "newer")
        assert said(target) == "newer"
        assert [path.name for path in place.iterdir()] == ["target"], (point, made)
    else:
        raise AssertionError("the end was not reached")
    assert left, "the kills are to leave something, or they are none"


def test_a_living_run_is_known_by_its_lock_and_the_second_is_refused(tmp_path: Path) -> None:
    from nemo_trt.errors import StateError

    target = tmp_path / "target"
    for new in (atomic.new_directory, atomic.new_file):
        with new(target) as path:
            with pytest.raises(StateError, match="being written by another run"), new(target):
                raise AssertionError("the block must not be entered")
            assert path.exists()
            if path.is_dir():
                (path / "a").write_text("first")
            else:
                path.write_text("first")
        assert "first" in ((target / "a") if target.is_dir() else target).read_text()
        if target.is_dir():
            (target / "a").unlink()
            target.rmdir()


def test_a_lock_that_another_run_took_along_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, flock = tmp_path / "target", atomic.fcntl.flock
    temporary, waited = atomic._temporary(target), list[int]()

    def late(lock: int, how: int) -> None:
        if not waited:  # the run that this one waits for ends
            waited.append(1)
            temporary.write_text("first")
            temporary.rename(target)
        flock(lock, how)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    with atomic.new_file(target) as path:
        assert target.read_text() == "first"
        path.write_text("second")
    assert target.read_text() == "second"


def test_what_a_run_of_the_other_kind_left_goes_as_well(tmp_path: Path) -> None:
    temporary = atomic._temporary(tmp_path / "target")
    temporary.mkdir()
    (temporary / "left").write_text("x")
    file(tmp_path / "target", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    (tmp_path / "target").unlink()
    temporary.write_text("left")
    directory(tmp_path / "target", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_two_runs_to_one_new_name_lose_nobodys_result(tmp_path: Path) -> None:
    from nemo_trt.errors import ExportError

    target = tmp_path / "target"
    for new in (atomic.new_directory, atomic.new_file):
        path = tmp_path / new.__name__
        with pytest.raises(ExportError, match="must not exist yet"), new(path, replace=False):
            path.mkdir()  # as a run of another program would, in the middle
            (path / "theirs").write_text("kept")
        assert (path / "theirs").read_text() == "kept"
        with pytest.raises(ExportError, match="must not exist yet"), new(path, replace=False):
            raise AssertionError("the block must not be entered")
    with atomic.new_directory(target, replace=False) as folder:
        (folder / "a").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new_directory", "new_file", "target"]


def test_a_symbolic_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for new, name in ((atomic.new_directory, "folder"), (atomic.new_file, "file")):
        link, real = tmp_path / name, tmp_path / "disk" / name
        link.symlink_to(real)
        for _ in range(2):
            with new(link):
                pass
            assert link.is_symlink()
            assert real.exists()
    assert len(list((tmp_path / "disk").iterdir())) == 2


@pytest.mark.parametrize("name", ["n" * 240, "n" * 255, "é" * 127])
def test_long_names_work(name: str, tmp_path: Path) -> None:
    for text in ("1", "2"):
        directory(tmp_path / name, text)
    assert said(tmp_path / name) == "2"
    atomic.write_text(tmp_path / f"{name[:-1]}f", "x")
    assert len(list(tmp_path.iterdir())) == 2


def test_all_is_on_the_disk_before_the_rename_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, put = atomic._sync, atomic._put
    monkeypatch.setattr(atomic, "_sync", lambda p: (events.append(p.name), sync(p)))
    monkeypatch.setattr(atomic, "_put", lambda *a: (events.append("put"), put(*a)))
    directory(tmp_path / "target", "x")
    assert events.count("put") == 1
    before = events[: events.index("put")]
    assert {"a", "b", "inner"} <= set(before)
    assert len([name for name in before if name.endswith(".partial")]) == 1
    assert events[-1] == tmp_path.name
    events.clear()
    file(tmp_path / "file", "x")
    assert events == [".file.partial", "put", tmp_path.name]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    import errno

    for new in (atomic.new_directory, atomic.new_file):
        with pytest.raises(OSError, match="No space left") as caught, new(tmp_path / "target"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.filename == str(tmp_path / "target")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo_trt.errors import ExportError

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    atomic.require_writable(tmp_path.parent / "x")
    with pytest.raises(ExportError, match="must be a folder that can be written"):
        atomic.require_writable(tmp_path / "a" / "b")
    monkeypatch.undo()
    (tmp_path / "file").touch(mode=0o755)
    with pytest.raises(ExportError, match="file must be a folder that can be written, for b"):
        atomic.require_writable(tmp_path / "file" / "a" / "b")


def test_missing_parent_folders_are_created(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    atomic.require_writable(deep / "text")
    atomic.write_text(deep / "text", "x")
    with atomic.new_file(deep / "c" / "file") as file:
        file.write_text("y")
    with atomic.new_directory(deep / "d" / "folder") as folder:
        (folder / "file").write_text("z")
    found = {
        str(one.relative_to(deep)): one.read_text() for one in deep.rglob("*") if one.is_file()
    }
    assert found == {"text": "x", "c/file": "y", "d/folder/file": "z"}
