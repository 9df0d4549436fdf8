"""Every inferred fact has a number, a probe, and its place in the documentation, and vice versa."""

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from nemo_trt.acceptance.smoke import answers, compiled, openings, pace, stripped
from nemo_trt.acceptance.smoke.fact import Outcome
from nemo_trt.acceptance.smoke.facts import FACTS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
PROBING = (answers, compiled, openings, pace, stripped)
STAR = re.compile(r"(?<=[a-z0-9])\*(?=[\s,.;:|)])")
REFERENCE = re.compile(r"\[(F\d+)\]\(#what-is-inferred\)")
PAGES = ("docs/tensorrt.md", "docs/attention.md")


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("facts", ROOT / "tools" / "facts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()


def probes(module: ModuleType) -> set[object]:
    """Public functions of a module that find an outcome."""
    return {
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_")
        and function.__module__ == module.__name__
        and function.__annotations__.get("return") is Outcome
    }


def references(text: str) -> dict[str, set[str]]:
    """Section of a page -> the facts that it refers to."""
    parts = re.split(r"^## (.*)$", text, flags=re.M)
    return {
        title: found
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
        if (found := set(REFERENCE.findall(body)))
    }


def starred(text: str) -> list[str]:
    """Places that mark something as inferred, and do not say which fact it is."""
    prose = re.sub(r"`[^`\n]*`|(?<!\w)\*+[^*\n]+\*+", "", text)  # without code and emphasis
    return [prose[max(one.start() - 30, 0) : one.end()] for one in STAR.finditer(prose)]


def test_facts_are_numbered_in_order() -> None:
    assert [fact.name for fact in FACTS] == [f"F{n + 1}" for n in range(len(FACTS))]


def test_every_fact_has_a_probe_of_its_own_and_every_probe_a_fact() -> None:
    used = [fact.probe for fact in FACTS]
    assert len(set(used)) == len(used)
    assert set(used) == {probe for module in PROBING for probe in probes(module)}


def test_every_fact_stands_in_the_section_that_it_names_and_no_other_fact_does() -> None:
    stated = {
        (page, section, name)
        for page in PAGES
        for section, names in references((ROOT / page).read_text(encoding="utf-8")).items()
        for name in names
    }
    assert stated == {(fact.page, fact.section, fact.name) for fact in FACTS}


def test_nothing_is_inferred_without_a_number() -> None:
    for page in PAGES:
        assert starred((ROOT / page).read_text(encoding="utf-8")) == []
    assert starred("a **bold** *word* `*.plan` is fast*. Or known* and 2 * 3") == [
        "a    is fast*",
        "a    is fast*. Or known*",
    ]


def test_the_table_of_the_page_is_written_from_the_facts() -> None:
    text = TOOL.PAGE.read_text(encoding="utf-8")
    assert text == TOOL.page(text), "run `make docs`"


def test_only_facts_about_answers_can_fail_the_smoke() -> None:
    failing = {fact.probe for fact in FACTS if fact.fails}
    assert failing == probes(answers) | probes(stripped)
    for module in (compiled, openings, pace):
        assert "wrong=True" not in inspect.getsource(module)
