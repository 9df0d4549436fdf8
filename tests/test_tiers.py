"""A test that does not keep to its tier fails; tests/tiers.py says what a tier is."""

from pathlib import Path

import pytest

from .tiers import TIERS

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose tests are in tiers, as ours are."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("from tests.tiers import *")
    markers = "\n".join(f"  {tier}: a tier" for tier in TIERS)
    pytester.makeini(f"[pytest]\naddopts = --strict-markers\nmarkers =\n{markers}\n")
    return pytester


def write(project: pytest.Pytester, tier: str, test: str) -> None:
    head = f"import pytest\n{f'pytestmark = pytest.mark.{tier}' if tier else ''}\n"
    project.makepyfile(**{f"test_{tier or 'none'}": head + test})


def outcome(project: pytest.Pytester, *arguments: str) -> tuple[str, dict[str, int]]:
    result = project.runpytest_subprocess("-p", "no:cacheprovider", *arguments)
    return str(result.stdout) + str(result.stderr), result.parseoutcomes()


def test_a_file_without_a_tier_is_refused(project: pytest.Pytester) -> None:
    write(project, "", "def test_x(): pass")
    assert "test_none.py::test_x must have a tier" in outcome(project)[0]


@pytest.mark.parametrize("module", ["torch", "transformers.models.llama"])
def test_a_unit_test_cannot_import_torch(project: pytest.Pytester, module: str) -> None:
    write(project, "unit", f"def test_x(): import {module}")
    write(project, "model", "import torch\ndef test_y(): pass")
    text, counts = outcome(project, "-m", "unit")
    assert counts == {"failed": 1} and "a unit test must not import" in text


def test_only_end_to_end_tests_start_processes(project: pytest.Pytester) -> None:
    for tier in TIERS:
        write(project, tier, "import subprocess\ndef test_x(): subprocess.run(['make', '-v'])")
    text, counts = outcome(project)
    assert counts == {"failed": 2, "passed": 1} and "must be marked e2e" in text


def test_marks_and_fixtures_raise_a_tests_tier(project: pytest.Pytester) -> None:
    test = """
        @pytest.fixture
        def tiny(): pass

        @pytest.fixture
        def made_of_tiny(tiny): pass

        def test_unit(): pass
        def test_model(made_of_tiny): pass
        @pytest.mark.e2e
        def test_e2e(tiny): pass
        def test_undeclared(request): request.getfixturevalue("tiny")
    """
    write(project, "unit", "\n".join(line[8:] for line in test.splitlines()))
    for tier, counts in {
        "unit": {"passed": 1, "failed": 1, "deselected": 2},
        "model": {"passed": 1, "deselected": 3},
        "e2e": {"passed": 1, "deselected": 3},
    }.items():
        assert outcome(project, "-m", tier)[1] == counts
