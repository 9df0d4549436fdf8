"""A stream that has nothing to tell sends comments, and none into what is being sent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nemo_trt.serve.http import streaming
from nemo_trt.serve.http.streaming import EventStream

pytestmark = pytest.mark.unit

COMMENT = b": waiting\n\n"
SCOPE: Any = {"type": "http", "asgi": {"spec_version": "2.3"}}


async def listening() -> Any:
    await asyncio.Event().wait()


def sent_by(chunks: AsyncIterator[Any], on_send: Any) -> list[Any]:
    """The messages of a stream; `on_send` is awaited with each."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)
        await on_send(messages)

    async def served() -> None:
        async with asyncio.timeout(60):
            await EventStream([], chunks)(SCOPE, listening, send)

    asyncio.run(served())
    return messages


def test_comments_come_while_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.001)
    commented = asyncio.Event()

    async def chunks() -> AsyncIterator[Any]:
        yield {"n": 1}
        await commented.wait()
        yield {"n": 2}

    async def on_send(messages: list[Any]) -> None:
        if sum(one.get("body") == COMMENT for one in messages) >= 3:
            commented.set()

    messages = sent_by(chunks(), on_send)
    assert messages[0]["type"] == "http.response.start"
    bodies = [one["body"] for one in messages[1:]]
    assert [one for one in bodies if one != COMMENT] == [
        b'data: {"n":1}\n\n', b'data: {"n":2}\n\n', b"data: [DONE]\n\n", b""
    ]  # fmt: skip
    first, second = bodies.index(b'data: {"n":1}\n\n'), bodies.index(b'data: {"n":2}\n\n')
    assert bodies[first + 1 : second] == [COMMENT] * (second - first - 1) and second - first > 3
    assert [one["more_body"] for one in messages[1:]] == [True] * (len(bodies) - 1) + [False]


def test_a_client_that_does_not_read_gets_no_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.001)

    async def chunks() -> AsyncIterator[Any]:
        yield {"n": 1}

    async def on_send(messages: list[Any]) -> None:
        before = len(messages)
        await asyncio.sleep(0.05)  # as long as its buffers are full
        assert len(messages) == before

    assert COMMENT not in [one.get("body") for one in sent_by(chunks(), on_send)]


def test_nothing_goes_on_once_the_stream_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def chunks() -> AsyncIterator[Any]:
        yield {"n": 1}

    async def on_send(messages: list[Any]) -> None:
        pass

    async def served() -> set[Any]:
        before = asyncio.all_tasks()
        async with asyncio.timeout(60):
            await EventStream([], chunks())(SCOPE, listening, lambda message: on_send([message]))
        return asyncio.all_tasks() - before

    assert not asyncio.run(served())
