"""What a request to the Responses API may say."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from .message_schema import (
    Function,
    Lenient,
    Many,
    Name,
    RefusalPart,
    Strict,
    Text,
    at_most,
    only,
    short,
    tagged,
)


class InputPart(Lenient):
    """A piece of text, of a message or of an earlier answer."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


Parts = Many[Annotated[InputPart | RefusalPart, Field(discriminator="type"), tagged("type")]]


class InputMessage(Lenient):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Parts


class InputCall(Lenient):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text = "{}"


class InputResult(Lenient):
    """What a tool answered."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | Parts


class InputReasoning(Lenient):
    """What another model thought; dropped."""

    type: Literal["reasoning"]


def _kind(item: Any) -> Any:
    """An item without a type is a message."""
    if isinstance(item, dict):
        return item.get("type") or "message"
    return getattr(item, "type", None)


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputResult, Tag("function_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(_kind),
    tagged("type"),
]


class FunctionTool(Function):
    """A function that the model may call; the only kind of tool."""

    type: Literal["function"]


class ChosenFunction(Strict):
    """The function that must be called."""

    type: Literal["function"]
    name: Name


class PlainFormat(Strict):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    """JSON that follows a schema; always enforced."""

    type: Literal["json_schema"]
    name: Name = ""
    description: Text = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True


class TextOptions(Strict):
    """What the text may be."""

    format: (
        Annotated[PlainFormat | SchemaFormat, Field(discriminator="type"), tagged("type")] | None
    ) = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    """Accepted as far as it asks for none: the model does not reason apart from its answer."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponseStreamOptions(Strict):
    """OpenAI's streams can be padded; these are not."""

    include_obfuscation: Literal[False] = False


class ResponsesRequest(Strict):
    """The body of POST /v1/responses. Nothing is stored: a request holds its whole conversation."""

    input: Text | Annotated[Many[Item], Field(min_length=1)]
    instructions: Text | None = None
    model: Name | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    text: TextOptions = Field(default_factory=TextOptions)
    tools: Annotated[Many[Annotated[FunctionTool, only("function")]], Field(max_length=128)] = (
        Field(default_factory=list)
    )
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    include: Many[
        Annotated[Literal["message.output_text.logprobs", "reasoning.encrypted_content"], short(64)]
    ] = Field(default_factory=list)
    metadata: Annotated[dict[str, Name], Field(max_length=16), at_most(16)] = Field(
        default_factory=dict
    )
    reasoning: Reasoning | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Name | None = None
    prompt_cache_options: dict[str, Any] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def wants_logprobs(self) -> bool:
        """Whether tokens come with their log-probabilities."""
        return self.top_logprobs is not None or "message.output_text.logprobs" in self.include
