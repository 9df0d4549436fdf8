"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from nemo_trt.errors import (
    CapacityError,
    DeadlineError,
    NemoTrtError,
    QueueFullError,
    RequestError,
    StateError,
)

from .refused import REFUSED

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
    504: "timeout",
}


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
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


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
    """Make every error of an app one of OpenAI's form."""

    @app.exception_handler(ApiError)
    async def _api(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(NemoTrtError)
    async def _ours(_: Request, error: NemoTrtError) -> JSONResponse:
        found = as_api_error(error)
        return JSONResponse(found.body, found.status, found.headers)

    @app.exception_handler(RequestValidationError)
    async def _field(_: Request, error: RequestValidationError) -> JSONResponse:
        deepest = max(error.errors(), key=lambda found: len(found["loc"]))
        message, param = _explain(deepest, error.body)
        return JSONResponse(error_body(400, message, param=param), 400)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        body = error_body(error.status_code, str(error.detail))
        return JSONResponse(body, error.status_code, error.headers)


def _explain(error: Mapping[str, Any], body: Any) -> tuple[str, str | None]:
    """One sentence on a field that did not pass, and the field's path."""
    param = _path(error["loc"], body)
    if error["type"] == "json_invalid":
        return f"The body must be JSON: {error.get('ctx', {}).get('error', error['msg'])}.", None
    if isinstance(body, bytes | str):
        return "The body must be JSON, sent with Content-Type: application/json.", None
    if error["type"].startswith("union_tag"):
        field = str(error["ctx"]["discriminator"]).strip("'")
        allowed = error["ctx"].get("expected_tags")
        words = f"must be one of {allowed}" if allowed else "must be given"
        return f"{param}.{field} {words}.", f"{param}.{field}"
    if error["type"] == "missing":
        return f"{param or 'The body'} must be given.", param
    name = (param or "").split(".")[0].split("[")[0]
    if name in REFUSED:
        return f"{param} {REFUSED[name]}", param
    if error["type"] == "extra_forbidden":
        return f"{param} is not a field that this server knows; nothing is ignored.", param
    if error["type"] in ("value_error", "assertion_error"):
        message = str(error["msg"]).removeprefix("Value error, ")
        return message, param or _first_word(message)
    got = repr(error.get("input"))
    shown = got if len(got) <= 80 else f"{got[:77]}..."
    return f"{param or 'The body'}: {error['msg']}, got {shown}.", param


def _first_word(message: str) -> str | None:
    """The field that a sentence begins with, as ours do."""
    word = message.split(" ")[0]
    return word if word.isidentifier() and word.islower() else None


def _path(location: Sequence[int | str], body: Any) -> str | None:
    """("body", "messages", 0, "user", "content") -> "messages[0].content".

    A location also names the members of unions that were tried; what the body holds tells them
    from fields.
    """
    path = ""
    for at, part in enumerate(location[1:], 2):
        if isinstance(part, int):
            path += f"[{part}]"
            body = body[part] if isinstance(body, list) and part < len(body) else None
        elif isinstance(body, dict) and (part in body or at == len(location)):
            path += f".{part}" if path else part
            body = body.get(part)
    return path or None
