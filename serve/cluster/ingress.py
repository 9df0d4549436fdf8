"""The deployment that takes requests in: it holds no model and passes them on."""

from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemo_trt.serve.log import log_to_stderr
from nemo_trt.serve.options import ServeOptions

from .proxy import create_proxy


class Ingress:
    """Ray calls it with every HTTP request."""

    def __init__(self, replicas: DeploymentHandle, options: ServeOptions) -> None:
        log_to_stderr()
        self._app = create_proxy(replicas, options)

    async def __call__(self, request: Request) -> Response:
        """The proxy's answer, which speaks ASGI by itself."""
        return _Answered(self._app)

    async def drain(self, timeout_s: float) -> bool:
        """See `Proxy.drain`."""
        return bool(await self._app.state.proxy.drain(timeout_s))


class _Answered(Response):
    """An ASGI application as a response."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]  # Ray's proxy adds it
            await send(message)

        await self._app(scope, receive, answer)
