"""POST /v1/chat/completions."""

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.scoring import PromptScores

from .bodies import JsonRoute
from .chat_run import CallPiece, ChatRun, start
from .errors import RESPONSES
from .logprobs import prompt_entries
from .schema import ChatRequest
from .service import Service
from .streaming import Chunk, EventStream, cancel, unless_gone, usage, usage_so_far

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", responses=RESPONSES)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    run = await unless_gone(request, start(body, service))
    if run is None:
        return Response(status_code=499)
    frame = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": service.model_name,
        "system_fingerprint": f"nemo-trt-{service.bundle.manifest.bundle_id[:12]}",
    }
    if body.stream:
        return EventStream(run.answers, _chunks(frame, body, run), run.headers)
    try:
        found = await unless_gone(request, whole(run))
    finally:
        cancel(run.answers)
    if found is None:
        return Response(status_code=499)
    answer = {
        **frame,
        "object": "chat.completion",
        "choices": found,
        "usage": usage(run.answers, predicted=body.prediction is not None),
    }
    if run.scores is None or body.prompt_logprobs is None:
        return JSONResponse(answer, headers=run.headers)
    work = service.preparers.run(_scored, answer, run.tokenizer, run.scores, body.prompt_logprobs)
    return Response(await work, headers=run.headers, media_type="application/json")


def _scored(answer: Chunk, tokenizer: Tokenizer, scores: PromptScores, top: int) -> bytes:
    """The body with vLLM's `prompt_logprobs`."""
    return to_json({**answer, "prompt_logprobs": prompt_entries(tokenizer, scores.scores, top)})


async def whole(run: ChatRun) -> list[Chunk]:
    """The choices of OpenAI's answer."""
    found: list[dict[str, Any]] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        for index in range(len(run.answers))
    ]
    async for delta in run.deltas():
        choice = found[delta.index]
        message = choice["message"]
        message["content"] += delta.text
        if delta.logprobs:
            choice["logprobs"] = choice["logprobs"] or {"content": []}
            choice["logprobs"]["content"] += delta.logprobs
        for piece in delta.calls:
            calls = message.setdefault("tool_calls", [])
            if piece.index == len(calls):
                calls.append(_call(piece))
            else:
                calls[piece.index]["function"]["arguments"] += piece.arguments
        choice["finish_reason"] = delta.reason
    for choice in found:
        if choice["message"].get("tool_calls"):
            choice["message"]["content"] = choice["message"]["content"] or None
    return found


def _call(piece: CallPiece) -> Chunk:
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"id": piece.id, "type": "function", "function": function}


def _call_chunk(piece: CallPiece) -> Chunk:
    if piece.name is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    return {"index": piece.index, **_call(piece)}


async def _chunks(frame: Chunk, body: ChatRequest, run: ChatRun) -> AsyncIterator[Chunk]:
    base = {**frame, "object": "chat.completion.chunk"}
    if body.include_usage:
        base["usage"] = None
    begun: set[int] = set()
    tokens: Counter[int] = Counter()

    def chunk(index: int, content: Chunk, entries: Any = (), reason: str | None = None) -> Chunk:
        if index not in begun:
            begun.add(index)
            content = {"role": "assistant", "content": "", **content}
        logprobs = {"content": entries} if entries else None
        choice = {"index": index, "delta": content, "logprobs": logprobs, "finish_reason": reason}
        told = {}
        if body.continuous_usage:
            told["usage"] = usage_so_far(run.prompt_tokens, tokens.total())
        return {**base, "choices": [choice], **told}

    async for delta in run.deltas():
        tokens[delta.index] += 1
        if delta.text or delta.logprobs:
            yield chunk(delta.index, {"content": delta.text}, delta.logprobs)
        if delta.calls:
            yield chunk(delta.index, {"tool_calls": [_call_chunk(call) for call in delta.calls]})
        if delta.reason:
            yield chunk(delta.index, {}, reason=delta.reason)
    counted = usage(run.answers, predicted=body.prediction is not None)
    if body.include_usage:
        yield {**base, "choices": [], "usage": counted}
