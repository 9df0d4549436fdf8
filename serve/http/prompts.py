"""Conversations and limits: what a request's prompt is, and whether it fits."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nemo_trt.serve.cancellation import current
from nemo_trt.serve.drafts import DraftSource
from nemo_trt.serve.interface import Engine

from .call_ids import mistral_id
from .errors import ApiError, naming
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
_CHARS_A_TOKEN = 8
"""More than a token has in most texts: what is shorter is tokenized without ado."""
_PIECE = 2**16
"""Characters of a piece at most: tokenizing takes a hundred times the memory of some texts."""


def text_of(content: str | Sequence[TextPart | RefusalPart] | None) -> str:
    """The text of a message."""
    if content is None or isinstance(content, str):
        return content or ""
    return BETWEEN.join(part.text for part in content)


def conversation(
    engine: Engine,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    continue_final: bool = False,
    variables: Mapping[str, object] | None = None,
) -> list[int]:
    """Tokens of a conversation in the model's own format.

    Raises:
        ApiError: no context could hold it.
        RequestError: the format does not allow it.
    """
    if len(messages) > engine.max_seq_len:  # each is a token at least
        words = f"you sent {len(messages)} messages. Please reduce their number."
        raise _too_long(engine, words, "messages")
    require_room(engine, _texts(messages), "messages")
    turns = [_turn(message) for message in messages]
    offered = [tool.model_dump(exclude_unset=True) for tool in tools]
    return engine.tokenizer.chat(
        turns,
        offered or None,
        continue_final=continue_final,
        variables=variables,
    )


def drafts(engine: Engine, prompt: Sequence[int], prediction: Prediction | None) -> DraftSource:
    """What answers to a prompt are drafted from; of a prediction, as much as an answer holds."""
    if prediction is None:
        return engine.draft_source(prompt)
    text = text_of(prediction.content)[: _CHARS_A_TOKEN * engine.max_seq_len]
    tokens = encoded(engine, text, "prediction", bos=False)[: engine.max_seq_len]
    return engine.draft_source([*tokens, *prompt])


def require_room(
    engine: Engine, texts: Sequence[str], param: str, limit: int | None = None
) -> None:
    """Refuse texts that no context could hold, before they are tokenized whole.

    Where that is open, they are tokenized piece by piece: a piece ends amid a token or two, so
    twice the limit is too much without doubt.

    Args:
        limit: tokens; by default those of the context.

    Raises:
        ApiError: they are too long.
    """
    limit = limit or engine.max_seq_len
    size = sum(map(len, texts))
    if size <= _CHARS_A_TOKEN * limit:
        return
    words = f"your {param} has {size} characters, more than any {limit} tokens hold."
    if size <= limit * engine.longest_token:
        found = 0
        for piece in _pieces(texts, min(_CHARS_A_TOKEN * limit, _PIECE)):
            found += len(encoded(engine, piece, param, bos=False))
            if found > 2 * limit:
                words = f"your {param} resulted in more than {2 * limit} tokens."
                break
        else:
            return
    raise _too_long(engine, f"{words} Please reduce the length of the {param}.", param)


def encoded(engine: Engine, text: str, param: str, *, bos: bool) -> list[int]:
    """Tokens of a text.

    Raises:
        ApiError: the tokenizer gives it up.
        CancelledError: nobody waits for them any more.
    """
    current().require_wanted()
    with naming(param):  # Tekken's expressions give up a million spaces in a row
        return engine.tokenizer.encode(text, bos=bos)


def require_known(tokens: Sequence[int], vocab_size: int, param: str) -> None:
    """Refuse token ids that the vocabulary lacks, before anything looks them up.

    Raises:
        ApiError: one is negative, or `vocab_size` or more.
    """
    for token in (min(tokens, default=0), max(tokens, default=0)):
        if not 0 <= token < vocab_size:
            message = f"{param} must hold tokens of 0 to {vocab_size - 1}, got {token}."
            raise ApiError(400, message, param=param)


def _pieces(texts: Iterable[str], size: int) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), size):
            yield text[start : start + size]


def _too_long(engine: Engine, words: str, param: str) -> ApiError:
    """Clients look for how OpenAI's message begins."""
    known = f"This model's maximum context length is {engine.max_seq_len} tokens. However, "
    return ApiError(400, known + words, param=param, code="context_length_exceeded")


def _texts(messages: Sequence[Message]) -> list[str]:
    """What of a conversation is tokenized."""
    found: list[str] = []
    for message in messages:
        content = message.content or ""
        found += [content] if isinstance(content, str) else [part.text for part in content]
        if isinstance(message, AssistantMessage):
            found += [call.function.arguments for call in message.tool_calls or ()]
    return found


def answer_limit(engine: Engine, prompt: int, asked: int | None, param: str) -> int:
    """Tokens that an answer may have: what was asked for, or all that there is room for.

    Raises:
        ApiError: prompt and answer do not fit.
    """
    limit = engine.max_seq_len
    if prompt >= limit:
        words = (
            f"your {param} resulted in {prompt} tokens. Please reduce the length of the {param}."
        )
        raise _too_long(engine, words, param)
    if asked is not None and prompt + asked > limit:
        raise _too_long(
            engine,
            f"you requested {prompt + asked} tokens ({prompt} in the {param}, {asked} in the "
            f"completion). Please ask for at most {limit - prompt} tokens, or reduce the length "
            f"of the {param}.",
            "max_tokens",
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
