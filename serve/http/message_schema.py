"""Messages and tools of a conversation, as requests carry them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError, to_json


class Strict(BaseModel):
    """Nothing is ignored or converted: an unknown field is an error, null is absence."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if value is not None}
        return values


class Lenient(Strict):
    """What clients send back of earlier answers: fields that this server does not know are dropped.

    Answers carry fields that requests do not have, and client libraries add their own.
    """

    model_config = ConfigDict(extra="ignore", strict=True)


def _require_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticKnownError("string_unicode") from error
    return text


Text = Annotated[str, AfterValidator(_require_utf8)]
"""JSON can escape half a surrogate pair, which no tokenizer can read."""


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


Content = Annotated[Text | list[TextPart], Field(description="Text, or pieces of text.")]


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
        return to_json(value).decode() if isinstance(value, dict) else value


class ToolCall(Lenient):
    """A call that the model made."""

    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Lenient):
    """An earlier answer of the model. As the last message it may be continued: see `prefix`."""

    role: Literal["assistant"]
    content: Text | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = (
        None
    )
    tool_calls: list[ToolCall] | None = None
    prefix: bool = False


class ToolMessage(Lenient):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Text
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Lenient):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: Text = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False


class Tool(Lenient):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class ChosenName(Strict):
    """The name of a function."""

    name: str


class ChosenTool(Strict):
    """The function that must be called."""

    type: Literal["function"]
    function: ChosenName
