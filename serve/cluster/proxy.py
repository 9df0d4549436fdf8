"""The application of the ingress: health and metrics of all replicas; the rest is passed on."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from nemo_trt.serve.http import errors
from nemo_trt.serve.http.bodies import read
from nemo_trt.serve.http.cors import allow_origins
from nemo_trt.serve.http.errors import ApiError
from nemo_trt.serve.http.middleware import RequestMiddleware
from nemo_trt.serve.http.request_log import request_id
from nemo_trt.serve.metrics import CONTENT_TYPE, Metrics
from nemo_trt.serve.options import ServeOptions

from .call import Call, passed_scope
from .exposition import merged
from .forwarding import Forwarded
from .prefixes import prefix_keys

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_ASK_S = 5.0
_GRACE_S = 10.0
"""What a request may take beyond its time at the replica, which ends it with better words."""

router = APIRouter()


class Proxy:
    """What the ingress' routes talk to.

    Attributes:
        replicas: a handle of the deployment that answers.
        streamed: the same, for what comes bit by bit.
        running: requests that have been passed on and are not over.
    """

    def __init__(self, replicas: DeploymentHandle, options: ServeOptions) -> None:
        self.replicas, self.options = replicas, options
        self.streamed = replicas.options(stream=True)
        self.metrics = Metrics()
        self.running = 0
        self.draining = False

    async def ask(self, method: str) -> list[Any]:
        """What a method returns at each replica that answers in time."""
        try:
            found = await self.replicas.broadcast(method).results_async(
                timeout_s=_ASK_S, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return [one for one in found if not isinstance(one, BaseException)]

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more and wait until all is answered, or end what takes longer.

        Returns:
            Whether all was answered in time.
        """
        self.draining = True
        end = time.monotonic() + timeout_s
        while self.running and time.monotonic() < end:
            await asyncio.sleep(0.01)
        in_time = not self.running
        await self.ask("close")  # what still runs there gets an error
        while self.running and time.monotonic() < end + _ASK_S:
            await asyncio.sleep(0.01)
        return in_time


def create_proxy(replicas: DeploymentHandle, options: ServeOptions) -> FastAPI:
    """The application that passes requests on; `app.state.proxy` is its `Proxy`."""
    proxy = Proxy(replicas, options)
    app = FastAPI(openapi_url=None)
    app.state.proxy = proxy
    app.include_router(router)
    errors.install(app)
    app.add_middleware(RequestMiddleware, options=options, metrics=proxy.metrics)
    allow_origins(app, options)
    return app


@router.get("/health/live")
async def live() -> dict[str, str]:
    """The ingress answers."""
    return {"status": "live"}


@router.get("/health/ready")
async def ready(request: Request) -> JSONResponse:
    """200 when one replica at least takes requests; what each says of itself."""
    proxy: Proxy = request.app.state.proxy
    found = await proxy.ask("describe")
    serving = [one for one in found if one["status"] == "ready"]
    state = "draining" if proxy.draining else "ready" if serving else "starting"
    shown = (serving or found or [{}])[0]
    body = {name: shown[name] for name in shown if name not in ("replica", "pid")}
    slots = sum(one["slots"] or 0 for one in serving)
    body |= {"status": state, "slots": slots, "replicas": found}
    return JSONResponse(body, 200 if state == "ready" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus's text format, each sample with its replica's name."""
    proxy: Proxy = request.app.state.proxy
    texts = dict(await proxy.ask("metrics"))
    texts["ingress"] = proxy.metrics.errors_text().decode()
    return Response(merged(texts), media_type=CONTENT_TYPE)


@router.api_route("/{path:path}", methods=_METHODS)
async def forward(request: Request) -> Response:
    """Have a replica answer."""
    proxy: Proxy = request.app.state.proxy
    if proxy.draining:
        message = "The server is shutting down and takes no more requests."
        raise ApiError(503, message, code="draining", headers={"Retry-After": "2"})
    try:
        body = bytes(await read(request))
    except ClientDisconnect:
        return Response(status_code=499)
    keys = await asyncio.to_thread(prefix_keys, body)
    call = Call(scope=passed_scope(request.scope, request_id()), body=body, keys=keys)
    return Forwarded(proxy, call, timeout_s=proxy.options.request_timeout_s + _GRACE_S)
