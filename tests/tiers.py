"""Which tier a test belongs to, and that it keeps to it. CONTRIBUTING.md says how to use tiers.

Every test file states its tier: `pytestmark = pytest.mark.unit`, `.model` or `.e2e`. A mark on a
test, or a fixture named here, raises the tests concerned. A test carries one tier in the end.
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

TIERS = ("unit", "model", "e2e")  # cheap to dear
# Fixtures that raise the tests which use them, also by way of other fixtures.
FIXTURES = {
    "tiny_checkpoint": "model",
    "tiny": "model",
    "tekken_bundle": "model",
    "small_tekken": "model",
    "bundles": "model",
    "small": "model",
    "sample_checkpoint": "e2e",
    "sample_bundle": "e2e",
    "shallow": "e2e",
    "sample_fp8": "e2e",
    "accepted_checkpoint": "e2e",
    "browser": "e2e",
    "cluster": "e2e",
}
# Programs that only end-to-end tests start. (Libraries start fc-list or ldconfig by themselves.)
PROGRAMS = ("python", "nemo-trt", "make", "sh", "bash", "git")
# Not installed where unit tests run, as far as these can see.
NOT_IN_UNIT_TESTS = ("torch", "transformers")

_TEST = pytest.StashKey[pytest.Item]()


OF_SERVERS = ["-P", "-m", "nemo_trt.serve.grammar_trial"]
"""A server compiles grammars in a process of its own, which starts in a fifth of a second."""


def declared_tier(path: Path) -> str | None:
    """The tier that a test file's `pytestmark` names, read without importing the file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            marks = re.findall(r"pytest\.mark\.(\w+)", ast.unparse(node.value))
            return next((tier for tier in TIERS if tier in marks), None)
    return None


class _Forbidden:
    """Finds no module of torch or transformers: importing one fails as if it were not installed."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name.split(".")[0] in NOT_IN_UNIT_TESTS:
            raise ModuleNotFoundError(
                f"a unit test must not import {name}: mark the test or its file model", name=name
            )
        return None


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "unit":
        sys.meta_path.insert(0, _Forbidden())

    def no_process_below_e2e(event: str, arguments: tuple[Any, ...]) -> None:
        item = config.stash.get(_TEST, None)
        if event != "subprocess.Popen" or item is None or item.get_closest_marker("e2e"):
            return
        command = [os.fspath(word) for word in arguments[1]]
        if command[1:4] == OF_SERVERS and item.get_closest_marker("model"):
            return
        if Path(command[0]).name.startswith(PROGRAMS):
            pytest.fail(f"a test that starts a process must be marked e2e; it started {command}")

    sys.addaudithook(no_process_below_e2e)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m unit`, files of other tiers, and what stands beside them alone, are not imported."""
    if config.option.markexpr != "unit":
        return None
    files = [collection_path, *collection_path.rglob("*.py")]
    tiers = [declared_tier(file) for file in files if file.match("test_*.py")]
    return (bool(tiers) and all(tier in ("model", "e2e") for tier in tiers)) or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave every test one tier: the dearest of its file's, its own and its fixtures'."""
    tiers = []
    for item in items:
        named = {mark.name for mark in item.iter_markers() if mark.name in TIERS}
        if not named:
            raise pytest.UsageError(
                f"{item.nodeid} must have a tier: add `pytestmark = pytest.mark.unit` (or model, "
                f"or e2e) below the imports of its file. CONTRIBUTING.md says which."
            )
        named |= {FIXTURES[name] for name in getattr(item, "fixturenames", ()) if name in FIXTURES}
        tiers.append(max(named, key=TIERS.index))
    for item, tier in zip(items, tiers, strict=True):
        for node in item.listchain():
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name not in TIERS]
        item.add_marker(tier)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.stash[_TEST] = item
    try:
        return (yield)
    finally:
        del item.config.stash[_TEST]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: Any) -> Iterator[Any]:
    """A fixture asked for by name while the test runs must suit the test's tier, too."""
    item = request.config.stash.get(_TEST, None)
    tier = FIXTURES.get(fixturedef.argname, "unit")
    if item and not any(item.get_closest_marker(t) for t in TIERS[TIERS.index(tier) :]):
        pytest.fail(f"a test that uses {fixturedef.argname} must be marked {tier}")
    return (yield)
