"""Tools' schemas as Pydantic, zod and MCP servers write them: all work, most enforced whole."""

import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional

import pytest
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, SecretStr, create_model
from typing_extensions import TypedDict

from nemo_trt.engines.tokenizers import Tokenizer, open_tokenizer
from nemo_trt.serve.grammars import Grammars, VocabularyGrammars
from nemo_trt.serve.http.errors import ApiError
from nemo_trt.serve.http.message_schema import Tool
from nemo_trt.serve.http.tool_grammar import calls_grammar

pytestmark = pytest.mark.unit


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid")
    x: float
    y: float = 0.0


class Tree(BaseModel):
    name: str
    children: list["Tree"] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool = True


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    limit: int


DAY = "2026-11-26"
PYDANTIC: dict[str, tuple[Any, Any, Any]] = {  # type, a value, a value of another type
    "str": (str, "x", 1),
    "int": (int, 1, "x"),
    "float": (float, 1.5, "x"),
    "bool": (bool, True, "x"),
    "None": (None, None, 1),
    "Any": (Any, {"a": [1]}, ...),
    "bytes": (bytes, "x", 1),
    "Optional": (Optional[int], None, "x"),  # noqa: UP045
    "union": (int | str, "x", None),
    "list": (list[int], [1, 2], ["x"]),
    "bare list": (list, [1, "x"], 1),
    "set": (set[int], [1, 2], ["x"]),
    "frozenset": (frozenset[str], ["x"], [1]),
    "tuple": (tuple[int, str], [1, "x"], ["x", 1]),
    "long tuple": (tuple[int, ...], [1, 2, 3], ["x"]),
    "dict": (dict[str, int], {"a": 1}, {"a": "x"}),
    "bare dict": (dict, {"a": "x"}, 1),
    "dict of lists": (dict[str, list[Point]], {"a": [{"x": 1.0, "y": 2.0}]}, {"a": [1]}),
    "Literal": (Literal["a", "b", 3], 3, "c"),
    "Enum": (Colour, "red", "green"),
    "datetime": (datetime.datetime, f"{DAY}T12:00:00Z", "x"),
    "date": (datetime.date, DAY, "x"),
    "time": (datetime.time, "12:00:00Z", "x"),
    "timedelta": (datetime.timedelta, "P1D", 1),
    "UUID": (uuid.UUID, "123e4567-e89b-12d3-a456-426614174000", "x"),
    "Decimal": (decimal.Decimal, 1.5, None),
    "path": (pathlib.Path, "/tmp/x", 1),
    "URL": (AnyUrl, "https://example.com/a", 1),
    "IPv4": (ipaddress.IPv4Address, "10.0.0.1", "x"),
    "IPv6": (ipaddress.IPv6Address, "::1", 1),
    "secret": (SecretStr, "x", 1),
    "model": (Point, {"x": 1.0, "y": 2.0}, {"y": 2.0}),
    "list of models": (list[Point], [{"x": 1.0}], [{"z": 1}]),
    "recursive model": (Tree, {"name": "a", "children": [{"name": "b"}]}, {"children": []}),
    "discriminated": (
        Annotated[Cat | Dog, Field(discriminator="kind")],
        {"kind": "cat", "lives": 9},
        {"kind": "cow", "lives": 1},
    ),
    "union of models": (Cat | Point, {"x": 1.0}, {"x": "a"}),
    "NamedTuple": (Pair, [1, "x"], ["x", 1]),
    "TypedDict": (Options, {"limit": 3}, {"limit": "x"}),
    "default": (Annotated[int, Field(default=3)], 4, "x"),
    "bounds": (Annotated[int, Field(ge=1, le=10)], 10, 11),
    "open bounds": (Annotated[float, Field(gt=0, lt=1)], 0.5, 1.5),
    "multiple": (Annotated[int, Field(multiple_of=5)], 15, "x"),
    "length": (Annotated[str, Field(min_length=2, max_length=4)], "abc", "abcde"),
    "pattern": (Annotated[str, Field(pattern="^[a-z]+$")], "abc", "ABC"),
    "list length": (Annotated[list[int], Field(min_length=1, max_length=3)], [1], []),
    "examples": (Annotated[str, Field(examples=["a"], description="D", title="T")], "x", 1),
}
ZOD = {"$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False}


def zod(value: Any, good: Any, bad: Any, **more: Any) -> tuple[dict[str, Any], Any, Any]:
    """An object with one property, as zod-to-json-schema writes it."""
    schema = {"type": "object", "properties": {"v": value}, "required": ["v"], **ZOD, **more}
    return schema, {"v": good}, ... if bad is ... else {"v": bad}


TEXT = {"type": "string"}
OTHERS: dict[str, tuple[dict[str, Any], Any, Any]] = {  # schema, arguments, wrong arguments
    "zod email": zod({**TEXT, "format": "email"}, "a@example.com", 1),
    "zod url": zod({**TEXT, "format": "uri"}, "https://example.com", 1),
    "zod uuid": zod({**TEXT, "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", "x"),
    "zod datetime": zod({**TEXT, "format": "date-time"}, f"{DAY}T12:00:00Z", "x"),
    "zod cuid": zod({**TEXT, "pattern": "^[cC][^\\s-]{8,}$"}, "c12345678", "x"),
    "zod base64": zod({**TEXT, "contentEncoding": "base64"}, "eA==", 1),
    "zod enum": zod({**TEXT, "enum": ["a", "b"]}, "a", "c"),
    "zod literal": zod({**TEXT, "const": "a"}, "a", "b"),
    "zod int": zod({"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991}, 1, "x"),
    "zod nullable": zod({"type": ["string", "null"]}, None, 1),
    "zod union": zod({"anyOf": [TEXT, {"type": "number"}]}, 1.5, None),
    "zod tuple": zod(
        {"type": "array", "items": [TEXT, {"type": "number"}], "minItems": 2, "maxItems": 2},
        ["x", 1],
        ...,
    ),
    "zod set": zod({"type": "array", "uniqueItems": True, "items": TEXT}, ["x"], [1]),
    "zod record": zod({"type": "object", "additionalProperties": {"type": "number"}}, {"a": 1}, 1),
    "zod record of enum": zod(
        {"type": "object", "additionalProperties": {}, "propertyNames": {"enum": ["a"]}},
        {"a": 1},
        1,
    ),
    "zod any": zod({}, {"a": [None]}, ...),
    "zod never": zod(TEXT, "x", 1, not_={}),
    "zod default": zod({**TEXT, "default": "x"}, "y", 1),
    "zod intersection": zod(
        {
            "allOf": [
                {"type": "object", "properties": {"a": TEXT}, "required": ["a"]},
                {"type": "object", "properties": {"b": TEXT}, "required": ["b"]},
            ]
        },
        {"a": "x", "b": "y"},
        1,
    ),
    "MCP without arguments": ({"type": "object", "properties": {}}, {}, [1]),
    "MCP of one word": ({"type": "object"}, {"a": 1}, [1]),
    "MCP nothing": ({}, {}, ...),
    "MCP read_file": (
        {
            "type": "object",
            "properties": {"path": TEXT, "head": {"type": "number"}, "tail": {"type": "number"}},
            "required": ["path"],
        },
        {"path": "/x", "head": 3},
        {"path": 1},
    ),
    "MCP edit_file": (
        {
            "type": "object",
            "properties": {
                "path": TEXT,
                "edits": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"oldText": TEXT, "newText": TEXT},
                        "required": ["oldText", "newText"],
                        "additionalProperties": False,
                    },
                },
                "dryRun": {"type": "boolean", "default": False},
            },
            "required": ["path", "edits"],
            "additionalProperties": False,
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
        {"path": "/x", "edits": [{"oldText": "a", "newText": "b"}]},
        {"path": "/x", "edits": [{"oldText": "a"}]},
    ),
    "MCP definitions": (
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/definitions/N"}, "b": {"$ref": "#/$defs/M"}},
            "definitions": {"N": TEXT},
            "$defs": {"M": {"type": "integer"}},
            "required": ["a"],
        },
        {"a": "x", "b": 1},
        {"a": 1},
    ),
    "look-around": zod({**TEXT, "pattern": "^(?=.*[0-9]).+$"}, "a1", 1),
    "if, then": (
        {
            "type": "object",
            "properties": {"a": TEXT, "b": TEXT},
            "if": {"properties": {"a": {"const": "x"}}},
            "then": {"required": ["b"]},
        },
        {"a": "x", "b": "y"},
        {"a": 1},
    ),
    "dependent": (
        {"type": "object", "properties": {"a": TEXT}, "dependentRequired": {"a": ["b"]}},
        {"a": "x", "b": 1},
        {"a": 1},
    ),
}


def _tables() -> dict[str, tuple[dict[str, Any], Any, Any]]:
    found = dict(OTHERS)
    for name, (kind, good, bad) in PYDANTIC.items():
        schema = create_model("Arguments", v=(kind, ...)).model_json_schema()
        found[f"pydantic {name}"] = schema, {"v": good}, ... if bad is ... else {"v": bad}
    return found


SCHEMAS = _tables()
RELAXED = {
    "zod set",
    "zod record of enum",
    "look-around",
    "if, then",
    "dependent",
    *(f"pydantic {name}" for name in ("bytes", "set", "frozenset", "path", "secret")),
}
"""uniqueItems, propertyNames, if, dependentRequired, look-around; formats that name no grammar."""


@pytest.fixture(scope="module")
def tokenizer(sample_tokenizer: Path) -> Tokenizer:
    return open_tokenizer(sample_tokenizer)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return VocabularyGrammars(tokenizer, tokenizer.vocab_size, [2])


def tool(name: str, *, strict: bool = False) -> Tool:
    function = {"name": "f", "parameters": SCHEMAS[name][0], "strict": strict}
    return Tool.model_validate({"type": "function", "function": function})


def fits(grammars: Grammars, tokenizer: Tokenizer, name: str, arguments: Any) -> bool:
    """Whether a call with these arguments may be written, in JSON's usual form."""
    constraint = calls_grammar([tool(name)], None, grammars, several=True)[0].fresh()
    call = json.dumps([{"name": "f", "arguments": arguments}])
    for token in tokenizer.encode(call, bos=False):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return bool(constraint.allowed()[2])


def test_there_are_as_many_as_are_promised() -> None:
    assert len(SCHEMAS) == 74


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_call_that_fits_its_schema_may_be_written_and_no_other(
    grammars: Grammars, tokenizer: Tokenizer, name: str
) -> None:
    _, good, bad = SCHEMAS[name]
    assert fits(grammars, tokenizer, name, good)
    assert bad is ... or not fits(grammars, tokenizer, name, bad)


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_enforced_in_part_is_said_and_refused_where_it_is_strict(
    grammars: Grammars, name: str
) -> None:
    _, relaxed = calls_grammar([tool(name)], None, grammars, several=True)
    assert relaxed == ["tools[0].function.parameters"] * (name in RELAXED)
    if name in RELAXED:
        with pytest.raises(ApiError) as raised:
            calls_grammar([tool(name, strict=True)], None, grammars, several=True)
        assert raised.value.body["error"]["param"] == "tools[0].function.parameters"
