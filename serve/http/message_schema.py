"""Messages and tools of a conversation, as requests carry them."""

from functools import cache
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError, to_json

from .json_bounds import require_bounded

Entry = TypeVar("Entry")
Many = Annotated[list[Entry], Field(fail_fast=True)]
"""A list whose first wrong entry is an error: a wrong million of them would be a million errors."""


def _as_it_is(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """A list of integers itself: a copy of it would take as much memory again."""
    if type(value) is list and set(map(type, value)) == {int}:
        return value
    return handler(value)


Integers = Annotated[Many[int], WrapValidator(_as_it_is)]
"""A list of integers, which may be as long as a context."""


_LONGEST_NAME, _LONGEST_WORD = 1024, 64
"""Characters of a field's name, and of a value that is one of a few."""


def require_short(value: Any, name: str, most: int = _LONGEST_WORD) -> None:
    """Refuse a long text before the validator makes copies of it, for itself and for its error.

    Raises:
        ValueError: it is one, of more than `most` characters.
    """
    if isinstance(value, str) and len(value) > most:
        raise ValueError(f"{name} must have at most {most} characters, got {len(value)}.")


def short(most: int) -> BeforeValidator:
    """For texts with a limit: the same limit, checked before anything is copied."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and len(value) > most:
            raise PydanticKnownError("string_too_long", {"max_length": most})
        return value

    return BeforeValidator(check)


def tagged(field: str) -> BeforeValidator:
    """For objects of several kinds, told by a field: that it is a word."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            require_short(value.get(field), field)
        return value

    return BeforeValidator(check)


def only(kind: str) -> BeforeValidator:
    """For tools, all of one type: of another one it is no help to say which fields it lacks."""

    def check(value: Any) -> Any:
        given = value.get("type") if isinstance(value, dict) else None
        if isinstance(given, str) and given != kind:
            require_short(given, "type")
            raise PydanticCustomError(
                "of_a_field",
                "tools must be of type {kind} alone, got {given}.",
                {"kind": repr(kind), "given": repr(given), "field": "type"},
            )
        return value

    return BeforeValidator(check)


class Strict(BaseModel):
    """Nothing is ignored or converted: an unknown field is an error, null is absence."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        """Without nulls, and of unknown fields the first alone: each would be an error."""
        if not isinstance(values, dict):
            return values
        known = _names(cls)
        for name in _words(cls):
            require_short(values.get(name), name)
        kept = {name: values[name] for name in values if name in known and values[name] is not None}
        if len(kept) < len(values) and cls.model_config["extra"] == "forbid":
            others = (n for n in values if n not in known and values[n] is not None)
            for other in islice(others, 1):
                require_short(other, "The name of a field", _LONGEST_NAME)
                kept[other] = values[other]
        return kept


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """The fields as requests name them."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


@cache
def _words(model: type[BaseModel]) -> frozenset[str]:
    """The fields, as requests name them, whose value is one of a few words."""
    fields = model.model_fields.items()
    return frozenset(f.alias or name for name, f in fields if _has_literal(f.annotation))


def _has_literal(annotation: Any) -> bool:
    return get_origin(annotation) is Literal or (
        get_origin(annotation) in (Union, UnionType, Annotated)
        and any(map(_has_literal, get_args(annotation)))
    )


def at_most(count: int) -> BeforeValidator:
    """For objects: how many members they may have, checked before these are looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            if len(value) > count:
                limits = {
                    "field_type": "Dictionary",
                    "max_length": count,
                    "actual_length": len(value),
                }
                raise PydanticKnownError("too_long", limits)
            for name in value:
                require_short(name, "A name in it", _LONGEST_NAME)
        return value

    return BeforeValidator(check)


class Lenient(Strict):
    """What clients send back of earlier answers: fields that this server does not know are dropped.

    Answers carry fields that requests do not have, and client libraries add their own.
    """

    model_config = ConfigDict(extra="ignore", strict=True)


Text = str
"""Text for the model, of any length."""
Name = Annotated[str, Field(max_length=1024), short(1024)]
"""Text that says who or which, not a text for the model."""


FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$"), short(1024)]
"""A function that the model may call."""


class TextPart(Lenient):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class RefusalPart(Lenient):
    """A piece of an answer that says no."""

    type: Literal["refusal"]
    refusal: Text

    @property
    def text(self) -> str:
        """What the model said."""
        return self.refusal


Content = Annotated[Text | Many[TextPart], Field(description="Text, or pieces of text.")]


class SystemMessage(Lenient):
    """Instructions for the model."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Lenient):
    """A turn of the user."""

    role: Literal["user"]
    content: Content


class FunctionCall(Lenient):
    """A function's name and its arguments, which are JSON in a string."""

    name: Text
    arguments: Text = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, str):  # the model's format has it parsed
            require_bounded(value, "arguments")
        return to_json(value).decode() if isinstance(value, dict) else value


class ToolCall(Lenient):
    """A call that the model made."""

    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Lenient):
    """An earlier answer of the model. As the last message it may be continued: see `prefix`."""

    role: Literal["assistant"]
    content: (
        Text
        | Many[Annotated[TextPart | RefusalPart, Field(discriminator="type"), tagged("type")]]
        | None
    ) = None
    tool_calls: Many[ToolCall] | None = None
    prefix: bool = False


class ToolMessage(Lenient):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Text
    name: Name | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
    tagged("role"),
]


class Function(Lenient):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: Text = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False


class Tool(Lenient):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class ChosenName(Strict):
    """The name of a function."""

    name: Name


class ChosenTool(Strict):
    """The function that must be called."""

    type: Literal["function"]
    function: ChosenName
