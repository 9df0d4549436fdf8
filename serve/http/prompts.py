"""Conversations and limits: what a request's prompt is, and whether it fits."""

import asyncio
from collections.abc import Sequence
from typing import Any

from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.engine import AsyncEngine

from .errors import ApiError
from .schema import AssistantMessage, Content, Message, Prediction, SystemMessage, Tool

_BETWEEN = "\n\n"
"""Between the pieces of a message, as Mistral's own format has it."""


def text_of(content: Content | None) -> str:
    """The text of a message."""
    if content is None or isinstance(content, str):
        return content or ""
    return _BETWEEN.join(part.text for part in content)


async def conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> list[int]:
    """Tokens of a conversation in the model's own format.

    Raises:
        RequestError: the format does not allow it.
    """
    turns = [_turn(message) for message in messages]
    offered = [tool.model_dump(exclude_unset=True) for tool in tools]
    return await asyncio.to_thread(tokenizer.chat, turns, offered or None)


async def predicted(tokenizer: Tokenizer, prediction: Prediction | None) -> list[int]:
    """Tokens that an answer may resemble."""
    if prediction is None:
        return []
    return await asyncio.to_thread(tokenizer.encode, text_of(prediction.content), bos=False)


def answer_limit(engine: AsyncEngine, prompt: int, asked: int | None, param: str) -> int:
    """Tokens that an answer may have: what was asked for, or all that there is room for.

    Raises:
        ApiError: prompt and answer do not fit; both numbers are told.
    """
    limit = engine.max_seq_len
    if prompt >= limit:
        raise ApiError(
            400,
            f"{param} must be shorter than this model's context, {limit} tokens, got {prompt}.",
            param=param,
            code="context_length_exceeded",
        )
    if asked is not None and prompt + asked > limit:
        raise ApiError(
            400,
            f"{param} and answer must fit this model's context, {limit} tokens, got {prompt} and "
            f"{asked}. Ask for at most {limit - prompt}.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return asked or limit - prompt


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": text_of(message.content)}
    if isinstance(message, SystemMessage):
        turn["role"] = "system"  # "developer" is its newer name
    elif isinstance(message, AssistantMessage):
        if message.tool_calls:
            turn["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    elif message.role == "tool":
        turn |= message.model_dump(include={"tool_call_id", "name"}, exclude_none=True)
    return turn
