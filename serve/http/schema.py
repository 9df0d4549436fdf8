"""What a request may say: OpenAI's fields and the extensions that vLLM's users know."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nemo_trt.engines.sampling import SamplingParams

from .format_schema import GuidedFields
from .message_schema import (
    AssistantMessage,
    ChosenTool,
    Content,
    Integers,
    Many,
    Message,
    Name,
    Strict,
    Text,
    Tool,
    at_most,
    only,
    short,
)

_SEEDS = 2**64
_NOT_VARIABLES = ("messages", "tools", "add_generation_prompt", "continue_final_message")
StopText = Annotated[Text, Field(max_length=1024), short(1024)]


class StreamOptions(Strict):
    """What a stream tells besides the answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class Prediction(Strict):
    """Text that the answer may resemble: drafts are taken from it."""

    type: Literal["content"]
    content: Content


class HintFields(Strict):
    """Fields that change no token, and those that are accepted with their default value alone."""

    user: Name | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Name | None = None
    prompt_cache_options: dict[str, Any] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=0), at_most(0)] | None = None
    priority: Literal[0] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: bool | None = None
    use_beam_search: Literal[False] | None = None
    best_of: int | None = None


def continued(messages: Sequence[Message], asked: bool) -> bool:
    """Whether an answer goes on with the last message."""
    last = messages[-1] if messages else None
    return asked or (isinstance(last, AssistantMessage) and last.prefix)


class SamplingFields(GuidedFields, HintFields):
    """What chat and plain completions have in common."""

    model: Name | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_tokens: Annotated[int, Field(ge=0)] = 0
    logit_bias: Annotated[
        dict[
            Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]
        ],
        at_most(1024),
    ] = Field(default_factory=dict, max_length=1024)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        StopText | Annotated[Many[Annotated[StopText, Field(min_length=1)]], Field(max_length=16)]
    ) = ""
    stop_token_ids: Annotated[Many[int], Field(max_length=64)] = Field(default_factory=list)
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=32)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    speculate: bool = True
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _common_fields_fit_each_other(self) -> "SamplingFields":
        if self.stream_options and not self.stream:
            raise ValueError("stream_options must come with stream: true.")
        told = self.stream_options
        if told and told.continuous_usage_stats and not told.include_usage:
            raise ValueError(
                "stream_options.continuous_usage_stats must come with include_usage: true."
            )
        if self.best_of not in (None, self.n):
            raise ValueError("best_of must be absent or equal to n: answers are not ranked.")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs must come without stream: true.")
        _ = self.format
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream tells the usage so far."""
        return self.include_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )

    def params(self, index: int, *, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """The sampling of the `index`-th of n answers; with a seed, each has one of its own."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            seed=None if self.seed is None else (self.seed + index) % _SEEDS,
            stop=tuple(text for text in stop if text),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )


class ChatRequest(SamplingFields):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[Many[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[Many[Annotated[Tool, only("function")]], Field(max_length=128)] = Field(
        default_factory=list
    )
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool = True
    prediction: Prediction | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=64)
    echo: Literal[False] | None = None
    modalities: (
        Annotated[Many[Annotated[Literal["text"], short(64)]], Field(max_length=1)] | None
    ) = None
    reasoning_effort: Literal["none"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs must come with logprobs: true.")
        names = [tool.function.name for tool in self.tools]
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice must come with tools.")
        if isinstance(self.tool_choice, ChosenTool):
            wanted = self.tool_choice.function.name
            if wanted not in names:
                raise ValueError(f"tool_choice must name one of the tools, got {wanted!r}.")
        if len(set(names)) < len(names):
            raise ValueError("tools must have names that differ.")
        if self.max_tokens and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens must not differ.")
        last = self.messages[-1]
        if self.continue_final_message and not isinstance(last, AssistantMessage):
            raise ValueError("continue_final_message must come with an assistant's message last.")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError(
                "add_generation_prompt must be absent or false with continue_final_message."
            )
        for name in self.chat_template_kwargs:
            if name in _NOT_VARIABLES:
                raise ValueError(
                    f"chat_template_kwargs must not have {name}: it is a field of the request."
                )
        if self.add_generation_prompt is False and not self.continues:
            raise ValueError("add_generation_prompt must be true or absent, got false.")
        return self

    @property
    def continues(self) -> bool:
        """Whether the answer goes on with the last message."""
        return continued(self.messages, self.continue_final_message)

    @property
    def token_limit(self) -> int | None:
        """Maximum tokens of the answer, where the request has one."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(SamplingFields):
    """The body of POST /v1/completions."""

    prompt: (
        Text
        | Annotated[Integers, Field(min_length=1)]
        | Annotated[Many[Text], Field(min_length=1, max_length=32)]
        | Annotated[Many[Integers], Field(min_length=1, max_length=32)]
    )
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    add_special_tokens: bool = True

    @property
    def scored(self) -> int | None:
        """Alternatives to report for each token of the prompt; None where it is not scored."""
        if self.prompt_logprobs is not None:
            return max(self.prompt_logprobs, (self.logprobs or 0) if self.echo else 0)
        return self.logprobs if self.echo else None


class TokenizeRequest(Strict):
    """The body of POST /tokenize: a text, or a conversation."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Many[Message] | None = None
    tools: Annotated[Many[Annotated[Tool, only("function")]], Field(max_length=128)] = Field(
        default_factory=list
    )
    add_special_tokens: bool = True
    continue_final_message: bool = False
    add_generation_prompt: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("Either prompt or messages must be given.")
        if self.messages is None and (self.tools or self.continue_final_message):
            raise ValueError("tools and continue_final_message must come with messages.")
        if self.messages is not None and not self.add_special_tokens:
            raise ValueError("add_special_tokens must be true or absent with messages.")
        return self

    @property
    def continues(self) -> bool:
        """Whether the last message is to be continued."""
        return continued(self.messages or (), self.continue_final_message)


class DetokenizeRequest(Strict):
    """The body of POST /detokenize."""

    model: Name | None = None
    tokens: Integers
