"""Errors in OpenAI's form, {"error": {"message", "type", "param", "code"}}, or Anthropic's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Scope

from nemo_trt.errors import (
    CapacityError,
    DeadlineError,
    NemoTrtError,
    QueueFullError,
    RequestError,
    StateError,
)

from .anthropic_errors import PATH as ANTHROPIC
from .anthropic_errors import anthropic_body
from .request_log import note
from .validation import explain

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
    504: "timeout",
}
_LONGEST_MESSAGE, _LONGEST_PARAM = 4096, 256


class ErrorDetail(BaseModel):
    """What went wrong; `param` names the field, `code` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": words}
    for status, words in {
        400: "A field cannot be honoured; `param` names it.",
        401: "The API key is missing or wrong.",
        404: "There is no such model or path.",
        413: "The body is larger than this server takes.",
        415: "The body is not sent as JSON.",
        429: "The queue is full; try again after `Retry-After` seconds.",
        500: "A fault of the server.",
        503: "The server starts or shuts down.",
        504: "The request's time was over.",
    }.items()
}


class ApiError(Exception):
    """An answer with an error status, raised anywhere below a route."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = error_body(status, message, param=param, code=code)


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an error answer, or of an error in the middle of a stream."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    shown = _cut(message, _LONGEST_MESSAGE)
    named = None if param is None else _cut(param, _LONGEST_PARAM)
    return {"error": {"message": shown, "type": kind, "param": named, "code": code}}


def _cut(text: str, length: int) -> str:
    """Text of the client's own may stand in it, of any length."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def as_api_error(error: NemoTrtError) -> ApiError:
    """The answer that an error of ours deserves; what is wrong with the server is not told."""
    match error:
        case CapacityError():
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case RequestError():
            return ApiError(400, str(error), param=_first_word(str(error)))
        case QueueFullError():
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": "1"})
        case DeadlineError():
            return ApiError(504, str(error), code="timeout")
        case StateError():
            return ApiError(503, str(error), headers={"Retry-After": "5"})
        case _:
            return ApiError(500, f"The engine failed: {error}", code="engine_error")


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Errors of requests within are of this field."""
    try:
        yield
    except RequestError as error:
        raise ApiError(400, str(error), param=param) from error


def install(app: FastAPI) -> None:
    """Make every error of an app one of the form of the API that was asked."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        return error_response(request.scope, error)

    @app.exception_handler(NemoTrtError)
    async def _ours(request: Request, error: NemoTrtError) -> JSONResponse:
        return error_response(request.scope, as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def _field(request: Request, error: RequestValidationError) -> JSONResponse:
        message, param = explain(error.errors(), error.body)
        return error_response(request.scope, ApiError(400, message, param=param))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        found = ApiError(error.status_code, str(error.detail), headers=error.headers)
        return error_response(request.scope, found)


def own_path(scope: Scope) -> str:
    """The path of a request within this application, wherever it is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")) or "/"


def error_response(scope: Scope, error: ApiError) -> JSONResponse:
    """The answer to a request, in the form of the API that was asked; it is logged."""
    found = error.body["error"]
    note(param=found["param"], code=found["code"])
    return JSONResponse(own_form(scope, error), error.status, error.headers)


def own_form(scope: Scope, error: ApiError) -> dict[str, Any]:
    """The body of an error in the form of the API that was asked."""
    if own_path(scope).startswith(ANTHROPIC):
        return anthropic_body(error.body, error.status)
    return error.body


def _first_word(message: str) -> str | None:
    """The field that a sentence begins with, as ours do."""
    word = message.split(" ")[0]
    return word if word.isidentifier() and word.islower() else None
