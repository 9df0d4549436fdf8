"""Grammars that would hold a server are refused; those that people write are not."""

from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.errors import RequestError
from nemo_trt.serve.grammars import Grammars, VocabularyGrammars

pytestmark = pytest.mark.unit

TYPES: tuple[dict[str, Any], ...] = (
    {"type": "string"},
    {"type": "integer"},
    {"type": "number", "minimum": 0, "maximum": 100},
    {"type": "array", "items": {"type": "string"}, "maxItems": 20},
    {"enum": ["open", "closed", "in progress"]},
    {"type": ["string", "null"]},
    {"type": "string", "format": "date-time"},
    {"type": "string", "pattern": "^[a-z]{2,40}$"},
)


@pytest.fixture(scope="module")
def grammars(sample_tokenizer: Path) -> Grammars:
    tokenizer = open_tokenizer(sample_tokenizer)
    return VocabularyGrammars(tokenizer, tokenizer.vocab_size, [2])


def schema(count: int, *, optional: bool, depth: int = 0) -> dict[str, Any]:
    """An object of `count` properties of all types, with objects like it in it."""
    properties: dict[str, Any] = {f"field_{i}": TYPES[i % len(TYPES)] for i in range(count)}
    if depth:
        inner = schema(count, optional=optional, depth=depth - 1)
        properties |= {"nested": inner, "list": {"type": "array", "items": inner}}
    return {
        "type": "object",
        "properties": properties,
        "required": [] if optional else list(properties),
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("count", "optional", "depth"), [(200, True, 0), (300, False, 0), (20, True, 2), (60, False, 1)]
)
def test_large_schemas_of_people_are_enforced(
    grammars: Grammars, count: int, optional: bool, depth: int
) -> None:
    constraint = grammars.json_schema(schema(count, optional=optional, depth=depth))
    assert constraint.allowed().any() and not constraint.finished


def test_thousands_of_optional_properties_are_refused(grammars: Grammars) -> None:
    with pytest.raises(RequestError, match="one that can be enforced"):
        grammars.json_schema(schema(3000, optional=True))


def test_a_grammar_of_a_megabyte_is_refused_before_it_is_compiled(grammars: Grammars) -> None:
    with pytest.raises(RequestError, match="at most 262144 characters"):
        grammars.lark("start: " + " | ".join(f'"{i}"' for i in range(300_000)))


def test_answers_of_one_schema_share_what_was_compiled(grammars: Grammars) -> None:
    asked = schema(5, optional=False)
    first = grammars.json_schema(asked)
    before = grammars._compile.cache_info()
    first.accept(int(first.allowed().argmax()))
    second = grammars.json_schema(asked)
    assert grammars._compile.cache_info().hits == before.hits + 1
    assert not (second.allowed() == first.allowed()).all()  # the states are their own
