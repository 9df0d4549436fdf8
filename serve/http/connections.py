"""HTTP connections: deadlines for headers, body and reading, and how many there may be."""

import asyncio
import resource
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 32 * 1024
ACCEPTED_AT_ONCE = 64
"""Connections that the event loop accepts before it looks at any: each has a file already."""
_RESERVED_FILES = 64
"""Files left for everything that is not a connection: listener, model, log, event loop."""
_MOST_CONNECTIONS = 4096
_ACCEPT_ERROR_S = 60.0


def affordable_connections() -> int:
    """Connections that this process's limit of open files leaves room for.

    The soft limit is raised first, as far as the hard one allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _RESERVED_FILES + ACCEPTED_AT_ONCE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(8, min(_MOST_CONNECTIONS, soft - _RESERVED_FILES - ACCEPTED_AT_ONCE))


class Connections:
    """The open connections of one server that may be closed for the sake of a new one.

    Args:
        limit: connections at most.

    Attributes:
        silent: those without a request, the oldest first.
        uploading: those whose request is not there whole.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.silent: dict[GuardedProtocol, None] = {}
        self.uploading: dict[GuardedProtocol, None] = {}

    def victim(self, new: "GuardedProtocol") -> "GuardedProtocol":
        """What is closed when there are too many: the new one, where all others are answered."""
        for kind in (self.silent, self.uploading):
            for one in kind:
                if one is not new:
                    return one
        return new

    def forget(self, one: "GuardedProtocol") -> None:
        """It is being answered, or has gone."""
        self.silent.pop(one, None)
        self.uploading.pop(one, None)


class GuardedProtocol(H11Protocol):
    """uvicorn's h11 protocol with deadlines and a limit of connections.

    h11 bounds the bytes of a request line and its headers, which httptools does not. The headers
    of a request have `header_timeout_s`, its body `body_timeout_s`, and a client that reads nothing
    of its answer for `read_timeout_s` is cut off.

    When there are too many, a new connection takes the place of the oldest silent one, or else of
    the oldest whose request is not there whole. Requests that are being answered are never cut
    off. So accepting never fails, and neither silent nor slow connections keep anybody out, a
    health check least of all.
    """

    header_timeout_s: ClassVar[float] = 10.0
    body_timeout_s: ClassVar[float] = 60.0
    read_timeout_s: ClassVar[float] = 60.0
    every: ClassVar[Connections]

    @classmethod
    def limited_to(cls, connections: int) -> "type[GuardedProtocol]":
        """The protocol of a server with at most so many connections."""
        return type("GuardedProtocol", (cls,), {"every": Connections(connections)})

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._seen: object = None  # the request whose body has its deadline

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; when there are too many, close the one that matters least."""
        super().connection_made(transport)
        self.every.silent[self] = None
        self._set_deadline(self.header_timeout_s)
        if len(self.connections) > self.every.limit:
            victim = self.every.victim(self)
            self.every.forget(victim)
            self.connections.discard(victim)
            victim.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes of headers and bodies."""
        super().data_received(data)
        self._watch()
        if self in self.every.silent and self._deadline is None:  # another request's headers
            self._set_deadline(self.header_timeout_s)

    def on_response_complete(self) -> None:
        """The answer has been sent; uvicorn closes connections that stay silent then."""
        self._clear_deadline()
        super().on_response_complete()  # may begin with the next request
        self._watch()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer comes."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._clear_stalled()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has gone."""
        self._clear_deadline()
        self._clear_stalled()
        self.every.forget(self)
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Note where the connection stands, and give a body that begins its deadline."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.every.uploading.pop(self, None)
            self.every.silent.setdefault(self)
        elif not self.cycle.more_body:
            self.every.forget(self)
            self._clear_deadline()
        elif self._seen is not self.cycle:
            self._seen = self.cycle
            self.every.silent.pop(self, None)
            self.every.uploading[self] = None
            self._set_deadline(self.body_timeout_s)

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _clear_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class AcceptErrors:
    """An event loop's exception handler: errors in accepting are logged once a minute.

    asyncio tells of each with a traceback, thousands a second where no file is left.
    """

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle what asyncio tells of."""
        if not str(context.get("message", "")).startswith("socket.accept()"):
            loop.default_exception_handler(context)
        elif loop.time() >= self._quiet_until:
            self._quiet_until = loop.time() + _ACCEPT_ERROR_S
            words = f"No connection can be accepted: {context.get('exception')}."
            loop.default_exception_handler({"message": words})
