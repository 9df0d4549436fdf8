"""Which status the middleware counts and logs, however an application answers."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nemo_trt.serve import ServeOptions
from nemo_trt.serve.http.middleware import RequestMiddleware
from nemo_trt.serve.http.request_log import note

pytestmark = pytest.mark.unit
Send = Callable[[Any], Awaitable[None]]


class Counts(list[int]):
    def count_error(self, status: int) -> None:
        self.append(status)


async def whole(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


async def refused(send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


async def told_in_a_stream(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    note(error_status=504)
    await send({"type": "http.response.body", "body": b"x"})


async def broken_off(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x", "more_body": True})


async def failed(send: Send) -> None:
    raise ValueError("a fault")


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (whole, []),
        (refused, [404]),
        (told_in_a_stream, [504]),
        (broken_off, [499]),
        (failed, [500]),
    ],
)
def test_an_error_is_counted_once_by_what_the_client_was_told(
    answer: Callable[[Send], Awaitable[None]],
    counted: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await answer(send)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    counts = Counts()
    scope = {"type": "http", "method": "POST", "path": "/v1/x", "root_path": "", "headers": []}
    with caplog.at_level(logging.INFO, "nemo_trt.serve"):
        middleware = RequestMiddleware(app, ServeOptions(), counts)
        asyncio.run(middleware(scope, receive, send))
    assert counts == counted
    line = json.loads(caplog.records[-1].getMessage())
    assert (line.get("end") == "disconnected") == (counted == [499])
