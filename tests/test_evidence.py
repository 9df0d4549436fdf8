"""What the README promises has evidence, and the evidence is there."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "tools" / "evidence.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()
CLAIMS: list[dict[str, Any]] = TOOL.claims()


def missing(one: dict[str, Any]) -> list[str]:
    """Named tests that do not exist."""
    return [name for name in one.get("tests", ()) if not _exists(name)]


def _exists(name: str) -> bool:
    file, _, function = name.partition("::")
    path = ROOT / "tests" / file
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return not function or function in functions


def backed(readme: str, claims: list[dict[str, Any]]) -> list[str]:
    """Bullets of the README's introduction of which no claim quotes a word."""
    start = readme[: readme.index("## Two commands")]
    bullets = re.findall(r"^- (?:.+\n(?:  .+\n)*)", start, re.M)
    quotes = [quote for one in claims for quote in one.get("readme", ())]
    return [bullet for bullet in bullets if not any(quote in bullet for quote in quotes)]


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one["claim"])
def test_a_claim_has_evidence_of_its_level(one: dict[str, Any]) -> None:
    assert 0 <= one["level"] <= 5 and not missing(one)
    assert one.get("tests") or one["level"] == 0, "a level above 0 has tests"
    assert one.get("ran") or one["level"] < 3, "a level above 2 ran on hardware: where, and when?"
    assert re.search(r"\d{4}-\d\d-\d\d", one.get("ran", "1000-01-01"))
    assert [quote for quote in one.get("readme", ()) if quote not in README] == []


def test_the_readmes_promises_are_claims() -> None:
    assert len(re.findall(r"^- \*\*", README[: README.index("## Two commands")], re.M)) >= 4
    assert backed(README, CLAIMS) == []


def test_the_page_is_what_the_table_says() -> None:
    text = TOOL.PAGE.read_text(encoding="utf-8")
    assert text == TOOL.page(text), "run `make docs`"


def test_what_has_no_evidence_is_seen() -> None:
    assert missing({"tests": ["test_evidence.py::test_of_nothing", "gone.py::test_x"]}) == [
        "test_evidence.py::test_of_nothing",
        "gone.py::test_x",
    ]
    promised = README.replace("- **Export**", "- **Fly** to the moon.\n- **Export**", 1)
    assert backed(promised, CLAIMS) == ["- **Fly** to the moon.\n"]
