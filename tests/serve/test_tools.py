"""Calls of tools in Mistral's format."""

from typing import Any

import jsonschema
import numpy as np
import pytest

from nemo_trt.errors import RequestError
from nemo_trt.serve.tools import ToolConstraint, calls_schema, require_tools

pytestmark = pytest.mark.unit

TRIGGER, VOCAB = 9, 16
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"$ref": "#/$defs/unit"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["C", "F"]}},
}
TIME = {"type": "object", "properties": {"unit": {"$ref": "#/$defs/unit"}}, "$defs": {"unit": {}}}


class Only:
    """Allows one token, `length` times."""

    def __init__(self, token: int, length: int) -> None:
        self.token, self.left = token, length

    @property
    def finished(self) -> bool:
        return self.left == 0

    def allowed(self) -> Any:
        return np.arange(VOCAB) == self.token

    def accept(self, token_id: int) -> None:
        assert token_id == self.token
        self.left -= 1


def tokens(constraint: ToolConstraint) -> list[int]:
    mask = constraint.allowed()
    return list(range(VOCAB)) if mask is None else np.flatnonzero(mask).tolist()


def test_free_text_stays_free_and_calls_follow_their_grammar() -> None:
    constraint = ToolConstraint(TRIGGER, VOCAB, choice="auto", calls=Only(3, 2))
    assert tokens(constraint) == list(range(VOCAB))
    constraint.accept(5)
    assert tokens(constraint) == list(range(VOCAB))
    constraint.accept(TRIGGER)
    assert tokens(constraint) == [3]
    constraint.accept(3)
    assert not constraint.finished
    constraint.accept(3)
    assert constraint.finished


def test_a_required_call_begins_with_its_token() -> None:
    constraint = ToolConstraint(TRIGGER, VOCAB, choice="required", calls=Only(3, 1))
    assert tokens(constraint) == [TRIGGER]
    constraint.accept(TRIGGER)
    assert tokens(constraint) == [3]


def test_a_formatted_answer_may_be_calls_instead_but_not_both() -> None:
    text = Only(4, 2)
    constraint = ToolConstraint(TRIGGER, VOCAB, choice="auto", calls=Only(3, 1), text=text)
    assert tokens(constraint) == [4, TRIGGER]
    constraint.accept(4)
    assert tokens(constraint) == [4]
    constraint.accept(4)
    assert constraint.finished


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([{"name": "weather", "arguments": {"city": "Oslo", "unit": "C"}}], True),
        ([{"name": "time", "arguments": {"unit": 5}}], True),  # a definition of the same name
        ([{"name": "weather", "arguments": {"city": "Oslo", "unit": "K"}}], False),
        ([{"name": "weather", "arguments": {}}], False),
        ([{"name": "other", "arguments": {}}], False),
        ([{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abc123XYZ"}], False),
        ([], False),
    ],
)
def test_the_schema_of_calls_is_that_of_the_functions(calls: Any, right: bool) -> None:
    schema = calls_schema({"weather": WEATHER, "time": TIME}, several=True)
    assert jsonschema.Draft202012Validator(schema).is_valid(calls) == right


def test_one_call_alone_where_only_one_may_be() -> None:
    call = {"name": "time", "arguments": {}}
    for several in (True, False):
        schema = calls_schema({"time": {}}, several=several)
        assert jsonschema.Draft202012Validator(schema).is_valid([call, call]) == several


def test_a_model_without_the_token_has_no_tools() -> None:
    assert require_tools(9, ["f"]) == 9
    with pytest.raises(RequestError, match="tools must be absent, got f, g"):
        require_tools(None, ["f", "g"])
