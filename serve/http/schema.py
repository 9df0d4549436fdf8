"""What a request may say: OpenAI's fields and the extensions that vLLM's users know."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nemo_trt.engines.sampling import SamplingParams

_SEEDS = 2**64


class Strict(BaseModel):
    """Nothing is ignored or converted: an unknown field is an error, null is absence."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if value is not None}
        return values


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


Content = Annotated[str | list[TextPart], Field(description="Text, or pieces of text.")]


class SystemMessage(Strict):
    """What the model is told beforehand."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Strict):
    """What the user says."""

    role: Literal["user"]
    content: Content


class FunctionCall(Strict):
    """A function's name and its arguments, which are JSON in a string."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call that the model made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Strict):
    """What the model said before. What a client sends back of an answer may hold empty fields."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Strict):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Strict):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False


class Tool(Strict):
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


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A schema with its name. It is enforced, whether `strict` or not."""

    name: str = ""
    description: str = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True


class JsonSchemaFormat(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Strict):
    """Text that a regular expression matches."""

    type: Literal["regex"]
    regex: str


class GrammarFormat(Strict):
    """Text of a context-free grammar in Lark's form."""

    type: Literal["grammar"]
    grammar: str


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat,
    Field(discriminator="type"),
]


class Prediction(Strict):
    """Text that the answer may resemble: drafts are taken from it."""

    type: Literal["content"]
    content: Content


class SamplingFields(Strict):
    """What chat and plain completions have in common."""

    model: str | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    logit_bias: dict[
        Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]
    ] = Field(default_factory=dict, max_length=1024)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
    ) = Field(default_factory=list)
    stop_token_ids: Annotated[list[int], Field(max_length=64)] = Field(default_factory=list)
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=32)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    speculate: bool = True
    response_format: ResponseFormat | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "SamplingFields":
        if self.stream_options and not self.stream:
            raise ValueError("stream_options must come with stream: true.")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def params(self, index: int, *, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """The sampling of the `index`-th of n answers; with a seed, each has one of its own."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            seed=None if self.seed is None else (self.seed + index) % _SEEDS,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )


class ChatRequest(SamplingFields):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool = True
    prediction: Prediction | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    reasoning_effort: Literal["none"] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs must come with logprobs: true.")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice must come with tools.")
        if isinstance(self.tool_choice, ChosenTool):
            wanted = self.tool_choice.function.name
            if wanted not in (tool.function.name for tool in self.tools):
                raise ValueError(f"tool_choice must name one of the tools, got {wanted!r}.")
        if len({tool.function.name for tool in self.tools}) < len(self.tools):
            raise ValueError("tools must have names that differ.")
        if self.max_tokens and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens must not differ.")
        return self

    @property
    def token_limit(self) -> int | None:
        """Tokens of the answer at most, where the request says so."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(SamplingFields):
    """The body of POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=32)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=32)]
    )
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: int | None = None

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n):
            raise ValueError("best_of must be absent or equal to n: answers are not ranked.")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo must come without logprobs: the prompt's are not computed.")
        return self


class TokenizeRequest(Strict):
    """The body of POST /tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("Either prompt or messages must be given.")
        return self


class DetokenizeRequest(Strict):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[int]
