"""A request to Anthropic's Messages API as one to the chat API."""

from typing import Any

from .anthropic_schema import (
    AssistantTurn,
    CallBlock,
    CountRequest,
    MessagesRequest,
    ResultBlock,
    TextBlock,
    Turn,
)
from .schema import ChatRequest, TokenizeRequest
from .translation import taken, validated

FIELDS = (
    ("max_completion_tokens", "max_tokens"),
    ("response_format", "output_config.format"),
    (".function.parameters", ".input_schema"),
)
"""Names of the chat API and those that the client used."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(body: MessagesRequest) -> ChatRequest:
    """The same request in the chat API's words; the messages are taken out of `body`.

    Raises:
        ApiError: fields do not fit each other.
    """
    chat = _conversation(body) | {
        "max_completion_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": body.stop_sequences or None,
        "user": body.metadata.user_id,
    }
    choice = body.tool_choice
    if choice is not None:
        chat["parallel_tool_calls"] = not choice.disable_parallel_tool_use
        named = {"type": "function", "function": {"name": choice.name}}
        chat["tool_choice"] = _CHOICES.get(choice.type, named)
    if (wanted := body.output_config.format) is not None:
        schema = {"schema": wanted.schema_}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return validated(ChatRequest, chat, FIELDS)


def tokenize_request(body: CountRequest) -> TokenizeRequest:
    """The conversation in the words of /tokenize; the messages are taken out of `body`."""
    return validated(TokenizeRequest, _conversation(body), FIELDS)


def _conversation(body: CountRequest) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    continues = isinstance(body.messages[-1], AssistantTurn)
    if body.system:
        messages.append({"role": "system", "content": _content(body.system)})
    for turn in taken(body.messages):
        _append(messages, turn)
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "parameters": tool.input_schema,
                "strict": tool.strict,
                **({"description": tool.description} if tool.description else {}),
            },
        }
        for tool in body.tools
    ]
    return {
        "model": body.model,
        "messages": messages,
        "tools": tools,
        "continue_final_message": continues,
    }


def _append(messages: list[dict[str, Any]], turn: Turn) -> None:
    """Results of tools are messages of their own, in their place among the turn's texts."""
    if isinstance(turn.content, str):
        messages.append({"role": turn.role, "content": turn.content})
        return
    texts: list[TextBlock] = []
    calls = []
    for block in turn.content:
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, CallBlock):
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ResultBlock):
            if texts:
                messages.append({"role": turn.role, "content": _content(texts)})
                texts = []
            content = _content(block.content)
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
    results = any(isinstance(block, ResultBlock) for block in turn.content)
    if texts or not results:
        message: dict[str, Any] = {"role": turn.role, "content": _content(texts)}
        if isinstance(turn, AssistantTurn) and calls:
            message["tool_calls"] = calls
        messages.append(message)


def _content(content: str | list[TextBlock]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": block.text} for block in content]
