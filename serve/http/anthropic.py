"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from nemo_trt.serve.interface import Engine

from .anthropic_errors import PATH, AnthropicError
from .anthropic_events import MessageWriter
from .anthropic_input import FIELDS, chat_request, tokenize_request
from .anthropic_schema import CountRequest, MessagesRequest
from .bodies import JsonRoute
from .errors import RESPONSES
from .prompts import conversation
from .service import Service
from .streaming import unless_gone
from .written import response

router = APIRouter(route_class=JsonRoute)
_RESPONSES = {status: {**told, "model": AnthropicError} for status, told in RESPONSES.items()}


@router.post(PATH, responses=_RESPONSES)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation, in blocks of content."""
    service: Service = request.app.state.service
    chat = await service.parsers.run(chat_request, body)
    writer = partial(MessageWriter, service.model_name)
    return await response(request, chat, FIELDS, writer, stream=body.stream)


@router.post(f"{PATH}/count_tokens", responses=_RESPONSES)
async def count_tokens(body: CountRequest, request: Request) -> Response:
    """How many tokens a conversation has, with its tools."""
    service: Service = request.app.state.service
    work = service.preparers.run(_count, body, service.require(body.model))
    found = await unless_gone(request, work)
    return Response(status_code=499) if found is None else JSONResponse({"input_tokens": found})


def _count(body: CountRequest, engine: Engine) -> int:
    asked = tokenize_request(body)
    offered = [] if body.tool_choice and body.tool_choice.type == "none" else asked.tools
    turns = asked.messages or ()
    return len(conversation(engine, turns, offered, continue_final=asked.continues))
