"""Reads the body of a request: JSON of bounded size, parsed and validated within bounded time."""

import codecs
import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from nemo_trt.utf8 import WORDS, undecodable

from .errors import ApiError
from .json_bounds import JsonBounds, JsonTooLarge

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""How JSON in UTF-8 spells half a surrogate pair: it cannot hold one otherwise."""
_SHAPE = bytes(
    ord("0") if chr(byte).isdecimal() else ord("e") if chr(byte) in "eE" else byte
    for byte in range(256)
)
_LARGE = (b"0e000", b"0e+000", b"0" * 309)
"""How JSON spells a number beyond the bounds of a float, its digits all 0, and some others."""
_SMALL = 32 * 1024
"""Bytes that are parsed at once, since a thread costs as much."""
_SEARCHED = 256 * 1024
"""Bytes in which a wrong text is looked for, which takes many times their memory."""


class JsonRoute(APIRoute):
    """A route whose body, where it has one, is JSON of the model that its function names.

    FastAPI would parse and validate it on the event loop, whatever it holds.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, which finds the body read."""
        plain = super().get_route_handler()
        if self.body_field is None:
            return plain
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def handler(request: Request) -> Response:
            require_json(request)
            try:
                body = await read(request)
            except ClientDisconnect:
                return Response(status_code=499)
            if len(body) <= _SMALL:
                value = _validated(body, model)
            else:
                value = await request.app.state.service.parsers.run(_validated, body, model)
            return await plain(_Read(request.scope, request.receive, value))

        return handler


class _Read(Request):
    """A request whose body has become an object of its model."""

    def __init__(self, scope: Any, receive: Any, value: BaseModel) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        """Not empty: FastAPI asks for the JSON then."""
        return b"{}"

    async def json(self) -> Any:
        """The object."""
        return self._value


def require_json(request: Request) -> None:
    """A web page of another origin can send other types without asking.

    Raises:
        ApiError: the type is another one.
    """
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        got = f"got {given[:80]!r}." if given else "got none."
        raise ApiError(415, f"The Content-Type of the body must be application/json, {got}")


async def read(request: Request) -> bytearray:
    """The bytes of a JSON body.

    One that holds too much is refused when all of it has come, and kept no longer than it takes to
    know: a client that still sends would not see the answer.

    Raises:
        ApiError: it holds more than is allowed.
        ClientDisconnect: the client has gone.
    """
    body, bounds = bytearray(), JsonBounds()
    refusal: ApiError | None = None
    async for piece in request.stream():
        if refusal is not None:
            continue
        try:
            bounds.feed(piece)
            body += piece
        except JsonTooLarge as error:
            body.clear()
            refusal = ApiError(400, f"The body {error}", code="body_too_complex")
    if refusal is not None:
        raise refusal
    return body


def _validated(body: bytearray, model: type[BaseModel]) -> BaseModel:
    value = _parsed(body)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found, body=value) from error


def _parsed(body: bytearray) -> Any:
    """The value that a JSON text stands for, made from its bytes: no string of all of them."""
    if body.startswith(codecs.BOM_UTF8):
        del body[: len(codecs.BOM_UTF8)]
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        if (reason := _not_utf8(body)) is not None:
            raise ApiError(400, f"The body must be JSON in UTF-8: {reason}.") from error
        if _HALF.search(body):
            _require_whole_pairs(body)
        raise ApiError(400, f"The body must be JSON: {error}.") from error
    if isinstance(value, dict) and _may_overflow(body):
        _require_finite(value)
    return value


def _may_overflow(body: bytearray) -> bool:
    """Whether a number may stand there that no float holds, or a text that looks like one."""
    for start in range(0, len(body), _SMALL):
        shape = body[start : start + _SMALL + len(_LARGE[-1])].translate(_SHAPE)
        if any(large in shape for large in _LARGE):
            return True
    return False


def _require_finite(fields: dict[str, Any]) -> None:
    """Name the field that holds a number beyond all bounds, which no answer could hold."""
    for name, field in fields.items():
        waiting = [field]
        while waiting:
            one = waiting.pop()
            inner = one.values() if isinstance(one, dict) else one if type(one) is list else (one,)
            if any(type(value) is float and math.isinf(value) for value in inner):
                message = f"{name} must hold finite numbers, got one beyond 1.8e308."
                raise ApiError(400, message, param=name)
            waiting += [value for value in inner if type(value) in (dict, list) and value]


def _not_utf8(body: bytearray) -> str | None:
    """Why bytes are no UTF-8; None where they are. Decodes a block at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(body), _SMALL):
            decoder.decode(body[start : start + _SMALL])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return error.reason
    return None


def _require_whole_pairs(body: bytearray) -> None:
    """Name the field that holds half a surrogate pair, where a body is small enough to look."""
    path: str | None = ""
    if len(body) <= _SEARCHED:
        try:
            path = undecodable(json.loads(body))
        except ValueError:
            return
    if path is not None:
        raise ApiError(400, f"{path or 'The body'} {WORDS}", param=path or None)
