"""What a request to Anthropic's Messages API may say."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .message_schema import FunctionName, Lenient, Many, Name, Strict, Text, only, short, tagged
from .schema import StopText


class TextBlock(Lenient):
    """A piece of text."""

    type: Literal["text"]
    text: Text


class CallBlock(Lenient):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any] = Field(default_factory=dict)


class ThinkingBlock(Lenient):
    """What another model thought; dropped."""

    type: Literal["thinking", "redacted_thinking"]


class ResultBlock(Lenient):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: Text | Many[TextBlock] = ""


class SystemTurn(Lenient):
    """Instructions in the middle of a conversation."""

    role: Literal["system"]
    content: Text | Many[TextBlock]


class UserTurn(Lenient):
    """A turn of the user, which may hold results of tools."""

    role: Literal["user"]
    content: (
        Text | Many[Annotated[TextBlock | ResultBlock, Field(discriminator="type"), tagged("type")]]
    )


class AssistantTurn(Lenient):
    """An earlier answer; as the last turn it is continued."""

    role: Literal["assistant"]
    content: (
        Text
        | Many[
            Annotated[
                TextBlock | CallBlock | ThinkingBlock, Field(discriminator="type"), tagged("type")
            ]
        ]
    )


Turn = Annotated[SystemTurn | UserTurn | AssistantTurn, Field(discriminator="role"), tagged("role")]


class CustomTool(Lenient):
    """A function that the model may call; the only kind of tool."""

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: Text = ""
    input_schema: dict[str, Any]
    strict: bool = False


class ToolChoice(Strict):
    """Whether a tool is called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool = False


class SchemaOutput(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """What the text may be."""

    format: SchemaOutput | None = None


class NoThinking(Strict):
    """The model does not think apart from its answer."""

    type: Literal["disabled"]


class Metadata(Strict):
    """Who asks."""

    user_id: Name | None = None


class CountRequest(Strict):
    """The body of POST /v1/messages/count_tokens."""

    model: Name | None = None
    messages: Annotated[Many[Turn], Field(min_length=1)]
    system: Text | Many[TextBlock] = ""
    tools: Annotated[Many[Annotated[CustomTool, only("custom")]], Field(max_length=128)] = Field(
        default_factory=list
    )
    tool_choice: ToolChoice | None = None
    thinking: NoThinking | None = None
    output_config: OutputConfig = Field(default_factory=OutputConfig)
    cache_control: dict[str, Any] | None = None


class MessagesRequest(CountRequest):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    stop_sequences: Annotated[
        Many[Annotated[StopText, Field(min_length=1)]], Field(max_length=16)
    ] = Field(default_factory=list)
    stream: bool = False
    metadata: Metadata = Field(default_factory=Metadata)
    service_tier: Annotated[Literal["auto", "standard_only"], short(64)] | None = None
