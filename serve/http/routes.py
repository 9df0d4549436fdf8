"""The routes that generate nothing: models, tokens, health, metrics."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from nemo_trt import __version__
from nemo_trt.serve.metrics import CONTENT_TYPE

from .bodies import JsonRoute
from .errors import RESPONSES, ApiError
from .prompts import conversation
from .schema import DetokenizeRequest, TokenizeRequest
from .service import Service

router = APIRouter(route_class=JsonRoute)


@router.get("/v1/models", responses=RESPONSES)
async def models(request: Request) -> dict[str, Any]:
    """The model that is served."""
    return {"object": "list", "data": [_model(request.app.state.service)]}


@router.get("/v1/models/{name:path}", responses=RESPONSES)
async def model(name: str, request: Request) -> dict[str, Any]:
    """The model of this name."""
    service: Service = request.app.state.service
    if name != service.model_name:
        raise ApiError(
            404,
            f"The model {name!r} does not exist here; this server has {service.model_name!r}.",
            param="model",
            code="model_not_found",
        )
    return _model(service)


@router.post("/tokenize", responses=RESPONSES)
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """Tokens of a text, or of a conversation in the model's own format."""
    engine = request.app.state.service.require(body.model)
    if body.messages is not None:
        tokens = await conversation(
            engine.tokenizer, body.messages, body.tools, continue_final=body.continue_final_message
        )
    else:
        bos = body.add_special_tokens
        tokens = await asyncio.to_thread(engine.tokenizer.encode, body.prompt or "", bos=bos)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": engine.max_seq_len}


@router.post("/detokenize", responses=RESPONSES)
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    """The text of tokens, special ones left out."""
    engine = request.app.state.service.require(body.model)
    size = engine.tokenizer.vocab_size
    wrong = [token for token in body.tokens if not 0 <= token < size]
    if wrong:
        raise ApiError(400, f"tokens must be 0 to {size - 1}, got {wrong[0]}.", param="tokens")
    return {"prompt": await asyncio.to_thread(engine.tokenizer.decode, body.tokens)}


@router.get("/health/live", responses={500: {"description": "The engine has failed."}})
async def live(request: Request) -> Response:
    """Whether the process should go on: 500 when only a restart helps."""
    failure = request.app.state.service.failure
    status = "live" if failure is None else "failed"
    return JSONResponse({"status": status, "failure": failure}, 200 if failure is None else 500)


@router.get("/health/ready", responses={503: {"description": "Not ready, and why."}})
async def ready(request: Request) -> Response:
    """Whether requests are taken, and what would answer them."""
    service: Service = request.app.state.service
    return JSONResponse(service.describe(), 200 if service.state == "ready" else 503)


@router.get("/health", responses={503: {"description": "Not ready."}})
@router.get("/ping", responses={503: {"description": "Not ready."}})
async def ping(request: Request) -> Response:
    """Whether requests are taken, for load balancers: 200 or 503."""
    state = request.app.state.service.state
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of nemo-trt."""
    return {"version": __version__}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _model(service: Service) -> dict[str, Any]:
    session = service.engine.session if service.engine else None
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "nemo-trt",
        "max_model_len": session.max_seq_len if session else None,
    }
