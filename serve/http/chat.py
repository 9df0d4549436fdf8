"""POST /v1/chat/completions."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from nemo_trt.engines.generation import Constraint, TokenEvent
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.engine import Answer, AsyncEngine
from nemo_trt.serve.grammars import Grammars
from nemo_trt.serve.tools import ToolConstraint, calls_schema, parse_calls, require_tools

from .constraints import format_constraint
from .errors import RESPONSES, naming
from .logprobs import chat_logprob
from .middleware import note
from .prompts import answer_limit, conversation, predicted
from .schema import ChatRequest, ChosenTool
from .service import Service
from .streaming import Chunk, EventStream, accepted, cancel, merged, unless_gone, usage

router = APIRouter()


@router.post("/v1/chat/completions", responses=RESPONSES)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    engine = service.require(body.model)
    note(user=body.safety_identifier or body.user)
    offered = [] if body.tool_choice == "none" else body.tools
    trigger = None
    if offered:
        names = [tool.function.name for tool in offered]
        trigger = require_tools(engine.tokenizer.tool_calls_id, names)
    prompt = await conversation(engine.tokenizer, body.messages, offered)
    limit = answer_limit(engine, len(prompt), body.token_limit, "messages")
    prediction = await predicted(engine.tokenizer, body.prediction)
    grammars = await service.grammars() if offered or body.response_format else None
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    answers = [
        engine.generate(
            prompt,
            body.params(index, max_tokens=limit, logprobs=logprobs),
            constraint=_constraint(body, engine, grammars, trigger) if grammars else None,
            timeout_s=service.options.request_timeout_s,
            speculate=body.speculate,
            prediction=prediction,
        )
        for index in range(body.n)
    ]
    frame = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": service.model_name,
        "system_fingerprint": f"nemo-trt-{service.bundle.manifest.bundle_id[:12]}",
    }
    choices = [_Choice(engine.tokenizer, trigger, service.options.log_text) for _ in answers]
    if service.options.log_text:
        note(prompt=engine.tokenizer.decode(prompt))
    await accepted(answers)
    if body.stream:
        return EventStream(answers, _chunks(frame, body, choices, answers))
    try:
        found = await unless_gone(request, _whole(choices, answers))
    finally:
        cancel(answers)
    if found is None:
        return Response(status_code=499)
    return JSONResponse(
        {
            **frame,
            "object": "chat.completion",
            "choices": found,
            "usage": usage(answers, predicted=bool(prediction)),
        }
    )


def _constraint(
    body: ChatRequest, engine: AsyncEngine, grammars: Grammars, trigger: int | None
) -> Constraint | None:
    """What one answer may consist of: its format, and calls of tools."""
    text = format_constraint(body.response_format, grammars)
    if trigger is None:
        return text
    functions = {tool.function.name: tool.function.parameters for tool in body.tools}
    if isinstance(body.tool_choice, ChosenTool):
        name = body.tool_choice.function.name
        functions = {name: functions[name]}
    free = body.tool_choice in (None, "auto")
    schema = calls_schema(functions, several=body.parallel_tool_calls)
    with naming("tools"):
        calls = grammars.json_schema(schema)
    return ToolConstraint(
        trigger,
        engine.config.vocab_size,
        choice="auto" if free else "required",
        calls=calls,
        text=text if free else None,
    )


class _Choice:
    """One answer as OpenAI's message: text, and what stands behind [TOOL_CALLS] as calls."""

    def __init__(self, tokenizer: Tokenizer, trigger: int | None, log_text: bool) -> None:
        self._tokenizer, self._trigger, self._log_text = tokenizer, trigger, log_text
        self._text = ""
        self._shown = 0
        self._calling = False
        self._called: list[int] = []
        self._reason: str | None = None
        self.logprobs: list[Chunk] = []

    def push(self, event: TokenEvent) -> tuple[str, list[Chunk]]:
        """Take a token; return the text that may be shown now, and the token's log-probability."""
        self._text += event.text
        self._reason = event.finish_reason
        if self._calling:
            self._called.append(event.token_id)
            return "", []
        self._calling = event.token_id == self._trigger
        entry = [] if self._calling else chat_logprob(event, self._tokenizer)
        self.logprobs += entry
        shown = event.text if not self._calling else ""
        self._shown += len(shown)
        return shown, entry

    def finish(self) -> tuple[str, list[Chunk], str]:
        """The answer has ended: text that was not shown yet, the calls, and why it ended."""
        behind = self._tokenizer.decode(self._called)
        calls = parse_calls(behind) if self._calling and self._text.endswith(behind) else None
        if self._log_text:
            note(answer=self._text)
        if not calls:  # none, or cut off: then it is shown as the text that it is
            return self._text[self._shown :], [], self._reason or "stop"
        rest = self._text[self._shown : len(self._text) - len(behind)]
        tool_calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
        return rest, tool_calls, "tool_calls"


async def _whole(choices: Sequence[_Choice], answers: Sequence[Answer]) -> list[Chunk]:
    texts = [""] * len(choices)
    async for index, event in merged(answers):
        texts[index] += choices[index].push(event)[0]
    found = []
    for index, choice in enumerate(choices):
        rest, calls, reason = choice.finish()
        text = texts[index] + rest
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        found.append(
            {
                "index": index,
                "message": message,
                "logprobs": {"content": choice.logprobs} if choice.logprobs else None,
                "finish_reason": reason,
            }
        )
    note(end=[choice["finish_reason"] for choice in found])
    return found


async def _chunks(
    frame: Chunk, body: ChatRequest, choices: Sequence[_Choice], answers: Sequence[Answer]
) -> AsyncIterator[Chunk]:
    base = {**frame, "object": "chat.completion.chunk"}
    if body.include_usage:
        base["usage"] = None
    begun: set[int] = set()

    def chunk(
        index: int, delta: Chunk, entry: Sequence[Chunk] = (), reason: str | None = None
    ) -> Chunk:
        if index not in begun:
            begun.add(index)
            delta = {"role": "assistant", "content": "", **delta}
        logprobs = {"content": entry} if entry else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**base, "choices": [choice]}

    async for index, event in merged(answers):
        text, entry = choices[index].push(event)
        if text or entry:
            yield chunk(index, {"content": text}, entry)
        if event.finish_reason:
            rest, calls, reason = choices[index].finish()
            if rest:
                yield chunk(index, {"content": rest})
            if calls:
                numbered = [{"index": at, **call} for at, call in enumerate(calls)]
                yield chunk(index, {"tool_calls": numbered})
            yield chunk(index, {}, reason=reason)
            note(end=reason)
    counted = usage(answers, predicted=body.prediction is not None)
    if body.include_usage:
        yield {**base, "choices": [], "usage": counted}
