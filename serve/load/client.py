"""Sends one request and notes when each piece of its answer came."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from .chunks import error_words, read_piece
from .options import Endpoint, LoadOptions
from .record import Record
from .sse import EventParser

_ROUTES: dict[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}
_CONNECT_S = 10.0


class Client:
    """One server's client. It keeps as many connections as there are requests on the way: none
    waits for another one's.

    Args:
        clock: seconds.
    """

    def __init__(
        self, options: LoadOptions, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self.restart()
        self._route = options.base_url + _ROUTES[options.endpoint]
        self._timeout_s = options.timeout_s
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if options.api_key:
            headers["Authorization"] = f"Bearer {options.api_key}"
        self.http = httpx.AsyncClient(
            headers=headers,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.http.aclose()

    def restart(self) -> None:
        """Count seconds from now on."""
        self._origin = self._clock()

    def now(self) -> float:
        """Seconds since `restart`."""
        return self._clock() - self._origin

    async def send(self, record: Record, body: Mapping[str, Any]) -> None:
        """Send `body` and fill `record`. Failures are written there; none is raised."""
        content = json.dumps(body).encode()
        record.sent_s = self.now()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(record, content)
        except TimeoutError:
            _fail(record, f"no complete answer within {self._timeout_s:g} s")
        except httpx.HTTPError as error:
            _fail(record, f"{type(error).__name__}: {error}".rstrip(": "))
        record.end_s = self.now()

    async def _exchange(self, record: Record, content: bytes) -> None:
        async with self.http.stream("POST", self._route, content=content) as response:
            record.status = response.status_code
            if response.status_code != 200:
                await self._refused(record, response)
            elif record.cancel_after == 0:
                record.outcome = "cancelled"
            else:
                await self._listen(record, response)

    async def _refused(self, record: Record, response: httpx.Response) -> None:
        _fail(record, error_text(await response.aread()))
        if response.status_code == 429:
            record.outcome = "rejected"
        asked = response.headers.get("retry-after", "")
        if asked.isdecimal():
            record.retry_after_s = float(asked)

    async def _listen(self, record: Record, response: httpx.Response) -> None:
        parser = EventParser()
        done = False
        async for data in response.aiter_raw():
            now = self.now()
            for event in parser.feed(data):
                piece = read_piece(event)
                if piece.error:
                    _fail(record, f"in the stream: {piece.error}")
                    return
                done |= piece.done
                if piece.bears:
                    record.chunk_s.append(now)
                if piece.finish_reason:
                    record.finish_s, record.finish_reason = now, piece.finish_reason
                if piece.usage:
                    _count(record, piece.usage)
                if record.cancel_after is not None and len(record.chunk_s) >= record.cancel_after:
                    record.outcome = "cancelled"
                    return
        if not done and record.finish_s is None:
            _fail(record, "the stream ended before the answer was complete")
            return
        record.outcome = "ok"
        if record.output_tokens is None:
            record.output_tokens = len(record.chunk_s)


def _count(record: Record, usage: Mapping[str, Any]) -> None:
    output, prompt = usage.get("completion_tokens"), usage.get("prompt_tokens")
    if isinstance(output, int):
        record.output_tokens, record.counted_by = output, "usage"
    if isinstance(prompt, int):
        record.prompt_tokens = prompt
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
        record.cached_tokens = details["cached_tokens"]


def _fail(record: Record, words: str) -> None:
    record.outcome, record.error = "error", words


def error_text(body: bytes) -> str:
    """What the body of an error says."""
    try:
        return error_words(json.loads(body))
    except ValueError:
        return error_words(body.decode(errors="replace"))
