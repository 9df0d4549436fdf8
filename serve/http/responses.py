"""POST /v1/responses: OpenAI's newer API, without its store."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from nemo_trt.errors import NemoTrtError

from .bodies import JsonRoute
from .chat_run import ChatRun, start
from .errors import RESPONSES, ApiError
from .response_events import Event, ResponseWriter
from .responses_input import chat_request, renamed
from .responses_schema import ResponsesRequest
from .service import Service
from .streaming import Chunk, EventStream, cancel, told, unless_gone, usage

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses", responses=RESPONSES)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, in items of output."""
    service: Service = request.app.state.service
    chat = await service.parsers.run(chat_request, body)
    try:
        run = await unless_gone(request, start(chat, service))
    except ApiError as error:
        raise renamed(error) from None
    if run is None:
        return Response(status_code=499)
    writer = ResponseWriter(_response(body, service))
    if body.stream:
        return EventStream(run.answers, _streamed(writer, run), run.headers, named=True)
    try:
        found = await unless_gone(request, _whole(writer, run))
    finally:
        cancel(run.answers)
    if found is None:
        return Response(status_code=499)
    return JSONResponse(found, headers=run.headers)


async def _events(writer: ResponseWriter, run: ChatRun) -> AsyncIterator[Event]:
    for event in writer.begin():
        yield event
    async for delta in run.deltas():
        for event in writer.push(delta):
            yield event
    for event in writer.end(_usage(run)):
        yield event


async def _streamed(writer: ResponseWriter, run: ChatRun) -> AsyncIterator[Event]:
    """The events, the last of which may tell of an error."""
    try:
        async for event in _events(writer, run):
            yield event
    except NemoTrtError as error:
        for event in writer.fail(told(error)):
            yield event


async def _whole(writer: ResponseWriter, run: ChatRun) -> Chunk:
    async for _ in _events(writer, run):
        pass
    return writer.response


def _usage(run: ChatRun) -> Chunk:
    counted = usage(run.answers)
    cached = counted["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }


def _response(body: ResponsesRequest, service: Service) -> dict[str, Any]:
    """The response's object with what is known beforehand."""
    said = body.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "model": service.model_name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": said["text"] if said["text"].get("format") else {"format": {"type": "text"}},
        "tool_choice": said["tool_choice"],
        "tools": said["tools"],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }
