"""The grammar of calls: as strict as each tool's schema can be enforced."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_trt.errors import RequestError
from nemo_trt.serve.grammar_trial import GrammarTooLargeError
from nemo_trt.serve.grammars import Grammar, Grammars
from nemo_trt.serve.tools import calls_schema

from .errors import ApiError, naming
from .message_schema import Tool

_ANY_OBJECT = {"type": "object"}
_LONGEST_S = 2.0
"""Processor time for all tools of a request."""
_VALUES = ("const", "enum", "default", "examples")  # hold no schemas


def calls_grammar(
    tools: Sequence[Tool], chosen: str | None, grammars: Grammars, *, several: bool
) -> tuple[Grammar, list[str]]:
    """What calls of these tools may be, and the fields whose schemas are enforced in part only.

    A schema may use what no grammar can enforce ("uniqueItems"). Of a tool that is not strict, the
    rest of its schema is enforced.

    Args:
        chosen: the one function that may be called; None: any.

    Raises:
        ApiError: a strict tool's schema cannot be enforced whole.
    """
    offered = {
        f"tools[{at}].function.parameters": tool.function
        for at, tool in enumerate(tools)
        if chosen in (None, tool.function.name)
    }
    schemas: dict[str, Mapping[str, Any]] = {f.name: f.parameters for f in offered.values()}
    before = grammars.spent_s
    try:
        return grammars.json_schema(calls_schema(schemas, several=several)), []
    except GrammarTooLargeError as error:
        raise ApiError(400, f"tools: {error}", param="tools") from error
    except RequestError:
        relaxed = []
    for field, function in offered.items():
        if grammars.spent_s - before > _LONGEST_S:
            message = f"{field} must hold a smaller schema: those of the tools take too long."
            raise ApiError(400, message, param=field)
        alone = calls_schema({function.name: function.parameters}, several=False)
        try:
            grammars.json_schema(alone)
        except RequestError as error:
            if function.strict:
                raise ApiError(400, f"{field}: {error}", param=field) from error
            relaxed.append(field)
            schemas[function.name] = _sound(function.name, function.parameters, grammars)
    with naming("tools"):
        wanted = calls_schema(schemas, several=several)
        return grammars.json_schema(wanted, lenient=True), relaxed


def _sound(name: str, schema: Mapping[str, Any], grammars: Grammars) -> Mapping[str, Any]:
    """As much of a schema as a grammar can take: all of it, or all but regular expressions."""
    for tried in (schema, _without_patterns(schema)):
        try:
            grammars.json_schema(calls_schema({name: tried}, several=False), lenient=True)
        except RequestError:
            continue
        return tried
    return _ANY_OBJECT


def _without_patterns(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: value if key in _VALUES else _without_patterns(value)
            for key, value in schema.items()
            if not (key == "pattern" and isinstance(value, str)) and key != "patternProperties"
        }
    if isinstance(schema, list):
        return [_without_patterns(value) for value in schema]
    return schema
