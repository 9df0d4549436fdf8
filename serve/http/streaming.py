"""Runs the answers of one HTTP request: n side by side, whole or streamed, while one listens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic_core import to_json
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from nemo_trt.engines.generation import TokenEvent
from nemo_trt.errors import NemoTrtError
from nemo_trt.serve.answer import Answer
from nemo_trt.serve.request import Usage

from .errors import ApiError, as_api_error
from .request_log import note

Result = TypeVar("Result")
Chunk = dict[str, Any]
KEEP_ALIVE_S = 15.0
"""Seconds of silence after which a stream gets a comment."""


async def accepted(answers: Sequence[Answer]) -> None:
    """Have all answers accepted, or none of them.

    Raises:
        NemoTrtError: see `Answer.accepted`.
    """
    try:
        await asyncio.gather(*(answer.accepted() for answer in answers))
    except BaseException:
        cancel(answers)
        raise


def cancel(answers: Sequence[Answer]) -> None:
    """Let none of them run on."""
    for answer in answers:
        answer.cancel()


async def merged(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, TokenEvent]]:
    """The tokens of several answers as they come, each with the index of its answer."""
    if len(answers) == 1:
        async for event in answers[0]:
            yield 0, event
        return
    news: asyncio.Queue[tuple[int, TokenEvent] | BaseException | None] = asyncio.Queue()

    async def follow(index: int, answer: Answer) -> None:
        try:
            async for event in answer:
                news.put_nowait((index, event))
            news.put_nowait(None)
        except Exception as error:
            news.put_nowait(error)

    tasks = [asyncio.create_task(follow(i, answer)) for i, answer in enumerate(answers)]
    try:
        left = len(tasks)
        while left:
            item = await news.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


def usage(answers: Sequence[Answer], *, predicted: bool = False) -> Chunk:
    """OpenAI's usage object; the prompt that n answers share counts once."""
    ended = [answer.ended.usage for answer in answers if answer.ended]
    prompts: dict[int, Usage] = {}
    for answer in answers:
        if answer.ended:
            prompts.setdefault(id(answer.prompt), answer.ended.usage)
    prompt = sum(found.prompt_tokens for found in prompts.values())
    completion = sum(found.completion_tokens for found in ended)
    result: Chunk = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(found.cached_tokens for found in prompts.values())
        },
    }
    if predicted:
        drafted = sum(found.drafted_tokens for found in ended)
        accepted = sum(found.accepted_tokens for found in ended)
        result["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        }
    note(prompt_tokens=prompt, completion_tokens=completion)
    return result


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result | None:
    """The result of `work`, or None when the client hangs up before: then `work` is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        note(end="disconnected")
        return None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def usage_so_far(prompt_tokens: int, completion_tokens: int) -> Chunk:
    """OpenAI's usage object in the middle of a stream."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class EventStream(StreamingResponse):
    """Server-sent events of chunks that come from running answers.

    Starlette stops asking for them when the client hangs up; then the answers are cancelled. A
    comment is sent when nothing else was for a while, because proxies close silent connections.

    Args:
        named: events bear the chunk's "type" as their name and nothing follows the last one, as in
            the Responses API, and `chunks` tells of errors; else the stream ends with [DONE].
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        chunks: AsyncIterator[Chunk],
        headers: Mapping[str, str] | None = None,
        *,
        named: bool = False,
    ) -> None:
        every = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(_events(chunks, named), media_type="text/event-stream", headers=every)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, as far as the client listens."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            cancel(self._answers)

    async def stream_response(self, send: Send) -> None:
        """Send the events, and a comment after every `KEEP_ALIVE_S` without one."""
        kept = _KeptAlive(send)
        beating = asyncio.create_task(kept.beat())
        try:
            await super().stream_response(kept.send)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


class _KeptAlive:
    """Sends what it is given, and comments while there is nothing."""

    def __init__(self, send: Send) -> None:
        self._send, self._sending = send, False
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()

    async def send(self, message: Message) -> None:
        """Send a message."""
        self._last, self._sending = self._clock(), True
        await self._send(message)
        self._sending = False

    async def beat(self) -> None:
        """Send comments until it is cancelled."""
        while True:
            rest = self._last + KEEP_ALIVE_S - self._clock()
            if rest > 0 or self._sending:  # to a client that does not read
                await asyncio.sleep(rest if rest > 0 else KEEP_ALIVE_S)
            else:
                comment = b": waiting\n\n"
                await self.send({"type": "http.response.body", "body": comment, "more_body": True})


async def _events(chunks: AsyncIterator[Chunk], named: bool) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield _event(chunk, named)
        if not named:
            yield b"data: [DONE]\n\n"
    except NemoTrtError as error:  # the status is on its way already: the stream says it
        yield _event(told(error).body, named)


def told(error: NemoTrtError) -> ApiError:
    """The error that a stream must tell its client; logged and counted."""
    found = as_api_error(error)
    note(error_status=found.status, error=str(error))
    return found


def _event(chunk: Chunk, named: bool) -> bytes:
    name = f"event: {chunk['type']}\n".encode() if named else b""
    return name + b"data: " + to_json(chunk) + b"\n\n"  # a fifth of json.dumps's time, per token


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
