"""The fixture cache: one maker at a time, nothing half made, nothing stale, nothing without end."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S

from . import fixture_cache
from .fixture_cache import NUM_KEPT, FixtureCache, key_of

pytestmark = pytest.mark.unit


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FixtureCache]:
    cache = FixtureCache(tmp_path / "cache")
    yield cache
    cache.close()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A room of one source file."""
    monkeypatch.setattr(fixture_cache, "ROOT", tmp_path)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1")
    return tmp_path / "room" / "a.py"


def maker(text: str = "made") -> tuple[Callable[[Path], None], list[Path]]:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text(text)

    return make, made


def test_an_entry_is_made_once_for_all_processes(cache: FixtureCache, tmp_path: Path) -> None:
    make, made = maker()
    entry = cache.get("x", make)
    other = FixtureCache(tmp_path / "cache")
    assert other.get("x", make) == cache.get("x", make) == entry == made[0] and len(made) == 1
    assert (entry / "file").read_text() == "made"
    other.close()


def test_a_changed_source_or_name_makes_another(cache: FixtureCache, source: Path) -> None:
    make, made = maker()
    first = cache.get("x", make, rooms=("room",))
    source.write_text("x = 2")
    second = cache.get("x", make, rooms=("room",))
    source.rename(source.with_name("b.py"))
    assert len({first, second, cache.get("x", make, rooms=("room",))}) == len(made) == 3


def test_a_changed_library_makes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = maker()
    before = key_of(make)
    monkeypatch.setattr(fixture_cache, "_version", lambda name: f"{name} of tomorrow")
    assert key_of(make) != before


def test_two_who_want_it_at_once_wait_for_one_maker(tmp_path: Path) -> None:
    started, go_on, made = threading.Event(), threading.Event(), []

    def make(folder: Path) -> None:
        made.append(folder)
        started.set()
        go_on.wait(LIMIT_S)
        (folder / "file").write_text("whole")

    found: list[str] = []

    def get() -> None:
        cache = FixtureCache(tmp_path)
        found.append((cache.get("x", make) / "file").read_text())
        cache.close()

    threads = [threading.Thread(target=get) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(LIMIT_S)
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == ["whole"] * 3 and len(made) == 1


def test_what_was_left_half_made_is_made_anew(cache: FixtureCache) -> None:
    def dies(folder: Path) -> None:
        (folder / "half").write_text("")
        if not made:
            made.append(folder)
            raise KeyboardInterrupt

    made: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        cache.get("x", dies)
    (made[0] / "other").write_text("")
    assert [path.name for path in cache.get("x", dies).iterdir()] == ["half"]


@pytest.mark.parametrize("change", ["write", "add", "remove"])
def test_a_test_that_writes_into_an_entry_fails_the_run(change: str, tmp_path: Path) -> None:
    cache = FixtureCache(tmp_path)
    make, made = maker()
    entry = cache.get("x", make)
    if change == "remove":
        (entry / "file").unlink()
    else:
        (entry / ("file" if change == "write" else "new")).write_text("made?")
    with pytest.raises(AssertionError, match="one wrote into: x"):
        cache.close()
    assert (cache.get("x", make) / "file").read_text() == "made" and len(made) == 2
    cache.close()


def test_old_states_are_removed_unless_they_are_in_use(tmp_path: Path, source: Path) -> None:
    make, _ = maker()
    user, others = FixtureCache(tmp_path / "cache"), []
    used = user.get("x", make, rooms=("room",))
    for number in range(5):
        source.write_text(f"x = {number}")
        cache = FixtureCache(tmp_path / "cache")
        others.append(cache.get("x", make, rooms=("room",)))
        cache.close()
    left = {path for path in used.parent.iterdir() if path.is_dir()}
    assert used in left and others[-1] in left and len(left) <= NUM_KEPT + 1
    assert len(list(used.parent.iterdir())) == 3 * len(left)
    user.close()
