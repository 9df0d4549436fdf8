"""What every request passes: its id, the API key, the size of its body, log, error count."""

import json
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemo_trt.serve.hosts import host_refusal
from nemo_trt.serve.log import LOG
from nemo_trt.serve.options import ServeOptions

from .errors import ApiError, error_response, own_path
from .request_log import begin, end
from .service import ErrorCount

_OPEN = ("/health/", "/page/")
_OPEN_PATHS = ("/", "/metrics", "/health", "/ping", "/version")
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestMiddleware:
    """ASGI middleware around the whole app.

    A client's own X-Request-Id is kept where it is plain. A request is logged and counted before
    the last piece of its answer is sent: who has the answer finds both. Bodies are counted as
    they come, so one that lies about its length is stopped too.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, metrics: ErrorCount) -> None:
        self._app, self._options, self._metrics = app, options, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        number = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
        path = own_path(scope)
        notes: dict[str, Any] = {"request_id": number, "method": scope["method"], "path": path}
        token = begin(notes)
        start = time.perf_counter()
        status = 0
        finished = False

        def finish(*, over: bool) -> None:
            nonlocal finished
            if not finished:
                finished = True
                self._finish(notes, status, time.perf_counter() - start, over=over)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = number
            elif not message.get("more_body", False):
                finish(over=True)
            await send(message)

        try:
            refusal = self._refusal(path, headers)
            if refusal is not None:
                await error_response(scope, refusal)(scope, receive, answer)
            else:
                await self._app(scope, self._counted(receive), answer)
        except Exception as error:
            LOG.exception("request %s failed", number)
            if status:
                raise
            failed = ApiError(500, f"The server failed: {type(error).__name__}.")
            await error_response(scope, failed)(scope, receive, answer)
        finally:
            end(token)
            finish(over=False)  # where the end of the answer was not sent

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        wrong_host = host_refusal(headers.get("host"), self._options.allowed_hosts)
        if wrong_host is not None:
            return ApiError(403, wrong_host, code="host_not_allowed")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._options.max_body_bytes:
            return ApiError(413, self._too_large_words(), code="body_too_large")
        if not self._options.api_keys or path in _OPEN_PATHS or path.startswith(_OPEN):
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._options.opens(key.strip()):
            return None
        if self._options.opens(headers.get("x-api-key", "")):
            return None
        message = "The API key must be given as Authorization: Bearer KEY, and be a right one."
        bearer = {"WWW-Authenticate": "Bearer"}
        return ApiError(401, message, code="invalid_api_key", headers=bearer)

    def _too_large_words(self) -> str:
        return f"The body must be at most {self._options.max_body_bytes} bytes."

    def _counted(self, receive: Receive) -> Receive:
        left = self._options.max_body_bytes

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise ApiError(413, self._too_large_words(), code="body_too_large")
            return message

        return counted

    def _finish(self, notes: dict[str, Any], status: int, seconds: float, *, over: bool) -> None:
        if notes.pop("passed_on", False):
            return
        if not over:
            notes.setdefault("end", "disconnected")
        failed = notes.get("error_status") or (status if over else 499)
        if failed >= 400:
            self._metrics.count_error(failed)
        notes |= {"status": status or 499, "seconds": round(seconds, 4)}
        LOG.info(json.dumps(notes, ensure_ascii=False))
