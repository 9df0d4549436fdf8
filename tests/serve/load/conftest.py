"""A small SSE server whose every answer a test writes, and which notes its own times."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

DONE = b"data: [DONE]\n\n"


@dataclass
class Seen:
    """One request as the server saw it; times of `time.perf_counter`."""

    body: dict[str, Any]
    path: str
    headers: dict[str, str]
    received: float
    sent: list[float] = field(default_factory=list)


@dataclass
class Stub:
    """The server: its address, what it saw, and how it answers."""

    url: str
    seen: list[Seen]

    @property
    def measured(self) -> list[Seen]:
        """Without the probe's requests, which are for one token."""
        return [one for one in self.seen if one.body["max_tokens"] > 1]


Answer = Callable[[Seen], Awaitable[Response]]


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def text(words: str, reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": words}, "finish_reason": reason}])


def usage(prompt: int, completion: int) -> bytes:
    counted = {"prompt_tokens": prompt, "completion_tokens": completion}
    return event(choices=[], usage=counted)


def stream(seen: Seen, *parts: bytes | float) -> Response:
    """Bytes to send, and seconds to wait between them."""

    async def chunks() -> Any:
        for part in parts:
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                seen.sent.append(time.perf_counter())
                yield part

    return StreamingResponse(chunks(), media_type="text/event-stream")


async def plain(seen: Seen) -> Response:
    """As many tokens as were asked for, a piece each; as many prompt tokens as words, and 3."""
    count = seen.body["max_tokens"]
    prompt = 3 + len(seen.body["messages"][0]["content"].split())
    tokens = [text("a") for _ in range(count)]
    return stream(seen, *tokens, text("", "length"), usage(prompt, count), DONE)


@pytest.fixture
def stub(served: Any) -> Callable[[Answer], AbstractContextManager[Stub]]:
    """`with stub(answer) as server`: `answer` makes the response to each completion."""

    @contextmanager
    def made(answer: Answer) -> Iterator[Stub]:
        server = Stub("", [])

        async def complete(request: Request) -> Response:
            received = time.perf_counter()
            seen = Seen(await request.json(), request.url.path, dict(request.headers), received)
            server.seen.append(seen)
            return await answer(seen)

        async def models(_: Request) -> Response:
            return JSONResponse({"data": [{"id": "stub"}]})

        app = Starlette(
            routes=[
                Route("/v1/models", models),
                Route("/v1/chat/completions", complete, methods=["POST"]),
                Route("/v1/completions", complete, methods=["POST"]),
            ]
        )
        with served(app) as server.url:
            yield server

    return made
