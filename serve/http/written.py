"""Sends one answer as a writer tells it: whole, or as events that bear names."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import JSONResponse, Response

from nemo_trt.errors import NemoTrtError

from .chat_run import ChatRun, Delta, start
from .errors import ApiError
from .schema import ChatRequest
from .streaming import Chunk, EventStream, cancel, told, unless_gone, usage
from .translation import Fields, renamed


class Writer(Protocol):
    """Turns the news of one answer into events of an API; each has its name as "type"."""

    @property
    def result(self) -> Chunk:
        """What the events built so far."""

    def begin(self, prompt_tokens: int) -> Iterator[Chunk]:
        """Events before the first token."""

    def push(self, delta: Delta) -> Iterator[Chunk]:
        """Events of one piece of news."""

    def end(self, usage: dict[str, Any]) -> Iterator[Chunk]:
        """The last events; `usage` is OpenAI's."""

    def fail(self, error: ApiError) -> Iterator[Chunk]:
        """The last events, where the answer breaks off."""


async def response(
    request: Request,
    chat: ChatRequest,
    fields: Fields,
    writer: Callable[[], Writer],
    *,
    stream: bool,
) -> Response:
    """The response to a request of another API, as far as its client listens.

    Args:
        chat: the same request to the chat API.
        fields: see `renamed`.
        writer: makes the writer once the request has been accepted.

    Raises:
        ApiError: the request is refused; it names the client's own fields.
    """
    try:
        run = await unless_gone(request, start(chat, request.app.state.service))
    except ApiError as error:
        raise renamed(error, fields) from None
    if run is None:
        return Response(status_code=499)
    return await _answer(request, run, writer(), stream=stream)


async def _answer(request: Request, run: ChatRun, writer: Writer, *, stream: bool) -> Response:
    if stream:
        return EventStream(run.answers, _streamed(writer, run), run.headers, named=True)
    try:
        found = await unless_gone(request, _whole(writer, run))
    finally:
        cancel(run.answers)
    if found is None:
        return Response(status_code=499)
    return JSONResponse(found, headers=run.headers)


async def _events(writer: Writer, run: ChatRun) -> AsyncIterator[Chunk]:
    for event in writer.begin(run.prompt_tokens):
        yield event
    async for delta in run.deltas():
        for event in writer.push(delta):
            yield event
    for event in writer.end(usage(run.answers)):
        yield event


async def _streamed(writer: Writer, run: ChatRun) -> AsyncIterator[Chunk]:
    """The events, the last of which may tell of an error."""
    try:
        async for event in _events(writer, run):
            yield event
    except NemoTrtError as error:
        for event in writer.fail(told(error)):
            yield event


async def _whole(writer: Writer, run: ChatRun) -> Chunk:
    async for _ in _events(writer, run):
        pass
    return writer.result
