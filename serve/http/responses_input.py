"""A request to the Responses API as one to the chat API."""

from typing import Any

from .responses_schema import (
    ChosenFunction,
    InputCall,
    InputMessage,
    InputResult,
    Item,
    Parts,
    ResponsesRequest,
    SchemaFormat,
)
from .schema import ChatRequest
from .translation import taken, validated

FIELDS = (
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("response_format", "text.format"),
    (".function.parameters", ".parameters"),
)
"""Names of the chat API and those that the client used."""


def chat_request(body: ResponsesRequest) -> ChatRequest:
    """The same request in the chat API's words; the input is taken out of `body`.

    Raises:
        ApiError: fields do not fit each other.
    """
    chat: dict[str, Any] = {
        "messages": _messages(body),
        "model": body.model,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "seed": body.seed,
        "logprobs": body.wants_logprobs,
        "top_logprobs": body.top_logprobs,
        "parallel_tool_calls": body.parallel_tool_calls,
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "tools": [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_unset=True)}
            for tool in body.tools
        ],
        "tool_choice": body.tool_choice,
    }
    if isinstance(body.tool_choice, ChosenFunction):
        chat["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice.name}}
    wanted = body.text.format
    if isinstance(wanted, SchemaFormat):
        schema = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_unset=True)
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif wanted is not None:
        chat["response_format"] = {"type": wanted.type}
    return validated(ChatRequest, chat, FIELDS)


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in taken(body.input):
        _append(messages, item)
    return messages


def _append(messages: list[dict[str, Any]], item: Item) -> None:
    if isinstance(item, InputMessage):
        messages.append({"role": item.role, "content": _content(item.content)})
    elif isinstance(item, InputCall):
        call = {
            "id": item.call_id,
            "type": "function",
            "function": {"name": item.name, "arguments": item.arguments},
        }
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif isinstance(item, InputResult):
        content = _content(item.output)
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})


def _content(content: str | Parts) -> str | list[dict[str, str]]:
    """As the chat API has it; parts are joined once it is known that they fit."""
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": part.text} for part in content]
