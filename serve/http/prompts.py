"""Conversations and limits: what a request's prompt is, and whether it fits."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.engine import AsyncEngine

from .call_ids import mistral_id
from .errors import ApiError
from .message_schema import (
    AssistantMessage,
    Message,
    RefusalPart,
    SystemMessage,
    TextPart,
    Tool,
    ToolMessage,
)
from .schema import Prediction

BETWEEN = "\n\n"
"""Between the pieces of a message, as Mistral's own format has it."""
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")


def text_of(content: str | Sequence[TextPart | RefusalPart] | None) -> str:
    """The text of a message."""
    if content is None or isinstance(content, str):
        return content or ""
    return BETWEEN.join(part.text for part in content)


async def conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    continue_final: bool = False,
    variables: Mapping[str, object] | None = None,
) -> list[int]:
    """Tokens of a conversation in the model's own format.

    Raises:
        RequestError: the format does not allow it.
    """
    turns = [_turn(message) for message in messages]
    offered = [tool.model_dump(exclude_unset=True) for tool in tools]
    return await asyncio.to_thread(
        tokenizer.chat,
        turns,
        offered or None,
        continue_final=continue_final,
        variables=variables,
    )


async def predicted(tokenizer: Tokenizer, prediction: Prediction | None) -> list[int]:
    """Tokens that an answer may resemble."""
    if prediction is None:
        return []
    return await asyncio.to_thread(tokenizer.encode, text_of(prediction.content), bos=False)


def answer_limit(engine: AsyncEngine, prompt: int, asked: int | None, param: str) -> int:
    """Tokens that an answer may have: what was asked for, or all that there is room for.

    Raises:
        ApiError: prompt and answer do not fit. The message begins as OpenAI's does, because
            clients look for that.
    """
    limit = engine.max_seq_len
    known = f"This model's maximum context length is {limit} tokens. However, "
    if prompt >= limit:
        raise ApiError(
            400,
            f"{known}your {param} resulted in {prompt} tokens. Please reduce the length of the "
            f"{param}.",
            param=param,
            code="context_length_exceeded",
        )
    if asked is not None and prompt + asked > limit:
        raise ApiError(
            400,
            f"{known}you requested {prompt + asked} tokens ({prompt} in the {param}, {asked} in "
            f"the completion). Please ask for at most {limit - prompt} tokens, or reduce the "
            f"length of the {param}.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return limit - prompt if asked is None else asked


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": text_of(message.content)}
    if isinstance(message, SystemMessage):
        turn["role"] = "system"  # "developer" is its newer name
    elif isinstance(message, AssistantMessage):
        if message.tool_calls:
            calls = [call.model_dump() for call in message.tool_calls]
            turn["tool_calls"] = [{**call, "id": mistral_id(call["id"])} for call in calls]
    elif isinstance(message, ToolMessage):
        turn["tool_call_id"] = mistral_id(message.tool_call_id)
        if message.name is not None and _NAME.fullmatch(message.name):
            turn["name"] = message.name
    return turn
