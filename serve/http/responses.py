"""POST /v1/responses: OpenAI's newer API, without its store."""

import secrets
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from .bodies import JsonRoute
from .errors import RESPONSES
from .response_events import ResponseWriter
from .responses_input import FIELDS, chat_request
from .responses_schema import ResponsesRequest
from .service import Service
from .written import response

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses", responses=RESPONSES)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, in items of output."""
    service: Service = request.app.state.service
    chat = await service.parsers.run(chat_request, body)

    def writer() -> ResponseWriter:
        return ResponseWriter(_response(body, service))

    return await response(request, chat, FIELDS, writer, stream=body.stream)


def _response(body: ResponsesRequest, service: Service) -> dict[str, Any]:
    """The response's object with what is known beforehand."""
    said = body.model_dump(
        include={"text", "tool_choice", "tools"}, by_alias=True, exclude_none=True
    )
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
