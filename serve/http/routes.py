"""The routes that generate nothing: models, tokens, health, metrics."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from nemo_trt import __version__
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.interface import Engine
from nemo_trt.serve.metrics import CONTENT_TYPE

from .bodies import JsonRoute
from .errors import RESPONSES, ApiError
from .prompts import conversation, encoded, require_known, require_room
from .schema import DetokenizeRequest, TokenizeRequest
from .service import Service
from .streaming import unless_gone

_MOST_TOKENS = 2**17
"""That /tokenize counts, whatever the context."""

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
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Tokens of a text, or of a conversation in the model's own format."""
    service: Service = request.app.state.service
    work = service.preparers.run(_tokenize, body, service.require(body.model))
    found = await unless_gone(request, work)
    if found is None:
        return Response(status_code=499)
    return Response(found, media_type="application/json")


@router.post("/detokenize", responses=RESPONSES)
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    """The text of tokens, special ones left out."""
    service: Service = request.app.state.service
    engine = service.require(body.model)
    return {"prompt": await service.preparers.run(_detokenize, body.tokens, engine.tokenizer)}


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
    return Response(await service.metrics_text(), media_type=CONTENT_TYPE)


def _tokenize(body: TokenizeRequest, engine: Engine) -> bytes:
    if body.messages is not None:
        tokens = conversation(engine, body.messages, body.tools, continue_final=body.continues)
    else:
        text = body.prompt or ""
        require_room(engine, [text], "prompt", _MOST_TOKENS)  # whether it fits is asked here
        tokens = encoded(engine, text, "prompt", bos=body.add_special_tokens)
    return to_json({"tokens": tokens, "count": len(tokens), "max_model_len": engine.max_seq_len})


def _detokenize(tokens: list[int], tokenizer: Tokenizer) -> str:
    require_known(tokens, tokenizer.vocab_size, "tokens")
    return tokenizer.decode(tokens)


def _model(service: Service) -> dict[str, Any]:
    facts = service.engine.facts if service.engine else None
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "nemo-trt",
        "max_model_len": facts.max_seq_len if facts else None,
    }
