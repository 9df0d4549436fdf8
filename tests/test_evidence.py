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
# They run a compiler on every change: TensorRT-RTX's, or Triton's for a GPU.
COMPILING = {
    "engines/trt/test_compiled.py",
    "engines/trt/test_builder.py",
    "engines/trt/test_paged_engine.py",
    "engines/trt/attention/test_compiled.py",
}
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


def unbacked(readme: str, claims: list[dict[str, Any]]) -> list[str]:
    """Sentences of the README's introduction, but for its status, that no claim quotes."""
    start = readme[readme.index("\n\n") : readme.index("## Two commands")]
    prose = re.sub(r"<picture>.*?</picture>", "", start, flags=re.S)
    prose = re.sub(r"^>.*$", "", prose, flags=re.M)
    parts = [
        part for block in re.split(r"\n\n|^- ", prose, flags=re.M) for part in sentences(block)
    ]
    quotes = [quote for one in claims for quote in one.get("readme", ())]
    return [part for part in parts if not any(quote in part for quote in quotes)]


def sentences(block: str) -> list[str]:
    """The sentences of a paragraph or bullet."""
    return [part.strip() for part in re.split(r"(?<=\.)\s+", block) if part.strip()]


def unsuited(one: dict[str, Any]) -> str | None:
    """Why a claim's tests are not of its level, if they are not."""
    files = {name.partition("::")[0] for name in one.get("tests", ())}
    if one["level"] == 2 and not files & COMPILING:
        return "level 2 is compiled: name a test that compiles"
    if one["level"] in (1, 2) and any(_needs_gpu(file) for file in files):
        return "a test that needs a GPU shows level 3"
    if not all("::" in name for name in one.get("tests", ())):
        return "name the test, not its file alone"
    return None


def _needs_gpu(file: str) -> bool:
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    return "pytest.mark.gpu" in text


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one["claim"])
def test_a_claim_has_evidence_of_its_level(one: dict[str, Any]) -> None:
    assert 0 <= one["level"] <= 5 and not missing(one)
    assert unsuited(one) is None
    assert one.get("tests") or one["level"] == 0, "a level above 0 has tests"
    assert one.get("ran") or one["level"] < 3, "a level above 2 ran on hardware: where, and when?"
    assert re.search(r"\d{4}-\d\d-\d\d", one.get("ran", "1000-01-01"))
    assert [quote for quote in one.get("readme", ()) if quote not in README] == []


def test_the_readmes_promises_are_claims() -> None:
    assert len(unbacked(README, [])) >= 9, "the sentences are found"
    assert unbacked(README, CLAIMS) == []


def test_the_page_is_what_the_table_says() -> None:
    text = TOOL.PAGE.read_text(encoding="utf-8")
    assert text == TOOL.page(text), "run `make docs`"


def test_what_has_no_evidence_is_seen() -> None:
    assert missing({"tests": ["test_evidence.py::test_of_nothing", "gone.py::test_x"]}) == [
        "test_evidence.py::test_of_nothing",
        "gone.py::test_x",
    ]
    promise = "It flies to the moon."
    for place in ("**Export**", "**Run and serve**", "A bundle also runs"):
        promised = README.replace(place, f"{promise} {place}", 1)
        assert unbacked(promised, CLAIMS) == [promise]


@pytest.mark.parametrize(
    ("level", "test", "why"),
    [
        (2, "engines/trt/test_session.py::test_nothing_is_allocated_after_open", "compiled"),
        (1, "engines/cuda/test_gpu.py::test_no_step_copies_the_cache", "needs a GPU"),
        (1, "engines/trt/test_session.py", "not its file"),
    ],
)
def test_evidence_of_another_level_is_seen(level: int, test: str, why: str) -> None:
    assert why in (unsuited({"level": level, "tests": [test]}) or "")
