"""Passes one request on to a replica and its answer back, whatever becomes of the replica."""

import asyncio
import json
from typing import Any, Protocol

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from nemo_trt.serve.http.errors import ApiError, own_form
from nemo_trt.serve.http.request_log import note, passed_on

from .call import Call, is_event_stream, is_last

_ATTEMPTS = 2
"""Replicas that one request may be lost with: it may be what they died of."""
_LATER = {"Retry-After": "5"}
_LOST = "The replica that ran this request was lost."


class Counter(Protocol):
    """Whoever counts what is under way."""

    streamed: DeploymentHandle
    running: int


class Forwarded(Response):
    """An answer that a replica gives.

    Nothing is sent before there is something of the body, so that a request whose replica dies is
    given to another one; of a stream, the start and comments may have been sent. A stream that has
    begun is ended by an event that says so; other answers are sent when they are there whole. When
    the client leaves, Ray cancels this, and this the replica's work.
    """

    def __init__(self, proxy: Counter, call: Call, *, timeout_s: float) -> None:
        super().__init__()
        self._proxy, self._call, self._timeout_s = proxy, call, timeout_s
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer.

        Raises:
            ApiError: there is none: 502 where replicas were lost, 429 where too many requests
                wait, 503 where no replica came in time.
        """
        self._proxy.running += 1
        try:
            for attempt in range(_ATTEMPTS):
                if await self._attempt(send, last=attempt == _ATTEMPTS - 1):
                    return
        except ApiError as error:
            if not self._started:
                raise
            await self._end(send, error.status, own_form(self._call.scope, error))
        finally:
            self._proxy.running -= 1

    async def _attempt(self, send: Send, *, last: bool) -> bool:
        """Whether the request is answered; if not, nothing has been sent."""
        held: list[Message] = []
        begun = streaming = over = False
        answer = self._proxy.streamed.answer.remote(self._call)
        try:
            async with asyncio.timeout(self._timeout_s) as time_left:
                async for messages in answer:
                    for message in messages:
                        held.append(message)
                        streaming |= is_event_stream(message)
                        over = is_last(message)
                    bodies = [message["body"] for message in held if message.get("body")]
                    if streaming and bodies:
                        begun = begun or not all(map(_is_comment, bodies))
                        time_left.reschedule(None)  # the replica has it, and keeps the time
                        await self._send(send, held)
            await self._send(send, held)
            return True
        except TimeoutError as error:
            message = "No replica answered in time. Try again."
            raise ApiError(503, message, code="no_replica", headers=_LATER) from error
        except BackPressureError as error:
            message = "As many requests wait as may. Try later."
            raise ApiError(429, message, code="queue_full", headers=_LATER) from error
        except RayTaskError:  # a fault of ours: another replica would have it too
            raise
        except (RayError, RayServeException) as error:
            if over:  # it had said all
                await self._send(send, held)
                return True
            note(error_status=502, error=str(error).splitlines()[0])
            if begun:
                lost = ApiError(502, _LOST, code="replica_lost")
                await self._end(send, lost.status, own_form(self._call.scope, lost))
                return True
            if last:
                raise ApiError(502, f"{_LOST} Try again.", code="replica_lost") from error
            return False
        finally:
            answer.cancel()  # of what is over, this does nothing

    async def _send(self, send: Send, held: list[Message]) -> None:
        """Send what is held, and hold nothing more."""
        if held and self._started and _starts_otherwise(held[0]):
            await self._end(send, held[0]["status"], held[1]["body"])
            held.clear()
        for message in held:
            if message["type"] == "http.response.start":
                if self._started:
                    continue  # of the replica that was lost
                self._started = True
            elif is_last(message):
                passed_on()
            await send(message)
        held.clear()

    async def _end(self, send: Send, status: int, error: dict[str, Any] | bytes) -> None:
        """End a stream by an event that tells of an error."""
        note(error_status=status)
        found = json.loads(error) if isinstance(error, bytes) else error
        name = f"event: {found['type']}\n" if "type" in found else ""  # as Anthropic's streams
        body = f"{name}data: {json.dumps(found)}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _is_comment(body: bytes) -> bool:
    """Whether a piece of a stream keeps it alive and says nothing."""
    return body.startswith(b":")


def _starts_otherwise(message: Message) -> bool:
    """Whether it begins an answer that is no stream: another replica's error."""
    return message["type"] == "http.response.start" and not is_event_stream(message)
