"""Connections: silent, slow and too many of them keep nobody out."""

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from nemo_trt.serve.http.connections import (
    MAX_HEADER_BYTES,
    AcceptErrors,
    GuardedProtocol,
    affordable_connections,
)
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.unit

ASK = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
Serve = Callable[..., contextlib.AbstractContextManager[tuple[str, int]]]


class Application:
    """Answers with the size of the body; /wait waits for `go`, /flood sends 64 MB."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.waiting = threading.Semaphore(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        if scope["path"] == "/wait":
            self.waiting.release()
            await asyncio.to_thread(self.go.wait, 60)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000 * (scope["path"] == "/flood")):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": str(size).encode()})


@contextlib.contextmanager
def serving(app: Any, limit: int = 8, **timeouts: float) -> Iterator[tuple[str, int]]:
    """A server whose deadlines, but for those that are given, no test waits for."""
    protocol = GuardedProtocol.limited_to(limit)
    for name in ("header_timeout_s", "body_timeout_s", "read_timeout_s"):
        setattr(protocol, name, timeouts.get(name, 600.0))
    config = uvicorn.Config(
        app,
        http=protocol,
        lifespan="off",
        log_config=None,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture
def opened() -> Iterator[Callable[..., socket.socket]]:
    with contextlib.ExitStack() as stack:

        def connect(address: tuple[str, int], data: bytes = b"") -> socket.socket:
            one = stack.enter_context(socket.create_connection(address, timeout=LIMIT_S))
            one.sendall(data)
            return one

        yield connect


def answered(one: socket.socket) -> bytes:
    """The status line, or nothing where the connection was closed instead."""
    try:
        return one.recv(100).partition(b"\r\n")[0]
    except ConnectionError:
        return b""


@pytest.mark.parametrize(
    ("data", "timeout"),
    [
        (b"", "header_timeout_s"),
        (b"GET / HTTP/1.1\r\nHost: loc", "header_timeout_s"),
        (POST + b"abc", "body_timeout_s"),
        (ASK % b"" + b"GET / HT", "header_timeout_s"),
    ],
)
def test_headers_and_bodies_have_deadlines(opened: Any, data: bytes, timeout: str) -> None:
    with serving(Application(), **{timeout: 0.1}) as address:
        one = opened(address, data)
        while one.recv(1000):  # at last the server closes it
            pass


def test_bytes_that_trickle_put_no_deadline_off(opened: Any) -> None:
    with serving(Application(), body_timeout_s=0.3, header_timeout_s=0.3) as address:
        for begin in (POST, b"GET / HTTP/1.1\r\nA: "):
            one = opened(address, begin)
            one.settimeout(0.01)
            with pytest.raises(ConnectionError):
                for _ in range(6000):  # a minute: the deadline comes long before
                    with contextlib.suppress(TimeoutError):
                        if not one.recv(1):
                            raise ConnectionResetError
                    one.send(b"x")


def test_an_answer_that_takes_long_has_no_deadline(opened: Any) -> None:
    app = Application()
    with serving(app, header_timeout_s=0.05, body_timeout_s=0.05) as address:
        one = opened(address, ASK % b"wait")
        app.waiting.acquire()
        others = [opened(address) for _ in range(3)]
        for other in others:
            assert not answered(other)  # their deadlines are over
        app.go.set()
        assert answered(one) == b"HTTP/1.1 200 OK"


def test_a_client_that_reads_nothing_is_cut_off(opened: Any) -> None:
    with serving(Application(), read_timeout_s=0.1) as address:
        one = opened(address, ASK % b"flood")
        with pytest.raises(ConnectionError):
            for _ in range(6000):  # what was sent before it is cut off stays to be read
                one.sendall(b"x")
                threading.Event().wait(0.01)


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost: a", POST, ASK % b""])
def test_idle_connections_give_way(opened: Any, data: bytes) -> None:
    """Silent ones and slow ones, three times as many as there may be."""
    app = Application()
    with serving(app, limit=8) as address:
        running = opened(address, ASK % b"wait")
        app.waiting.acquire()
        idle = [opened(address, data) for _ in range(24)]
        assert answered(opened(address, ASK % b"health")) == b"HTTP/1.1 200 OK"
        assert not answered(idle[0]) or data == ASK % b""
        app.go.set()
        assert answered(running) == b"HTTP/1.1 200 OK"


def test_silent_connections_go_before_those_that_send(opened: Any) -> None:
    with serving(Application(), limit=4) as address:
        sending = opened(address, POST + b"x" * 50)
        for _ in range(20):
            opened(address)
        assert answered(opened(address, ASK % b"")) == b"HTTP/1.1 200 OK"
        sending.sendall(b"x" * 50)
        assert answered(sending) == b"HTTP/1.1 200 OK"


def test_requests_that_are_answered_are_never_cut_off(opened: Any) -> None:
    app = Application()
    with serving(app, limit=4) as address:
        running = [opened(address, ASK % b"wait") for _ in range(4)]
        for _ in running:
            app.waiting.acquire()
        assert not answered(opened(address, ASK % b"health"))
        app.go.set()
        assert [answered(one) for one in running] == [b"HTTP/1.1 200 OK"] * 4


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * (MAX_HEADER_BYTES + 70000),
        b"GET /" + b"x" * (MAX_HEADER_BYTES + 70000),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ],
)
def test_endless_and_ambiguous_headers_are_refused(opened: Any, data: bytes) -> None:
    with serving(Application()) as address:
        one = opened(address)
        with contextlib.suppress(ConnectionError):
            one.sendall(data)
        assert answered(one) in (b"HTTP/1.1 400 Bad Request", b"")


def test_http_1_0_needs_no_host(opened: Any) -> None:
    with serving(Application()) as address:
        assert answered(opened(address, b"GET / HTTP/1.0\r\n\r\n")) == b"HTTP/1.1 200 OK"


def test_errors_in_accepting_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    class Loop(asyncio.SelectorEventLoop):
        now = 100.0

        def time(self) -> float:
            return self.now

    with contextlib.closing(Loop()) as loop:
        loop.set_exception_handler(AcceptErrors())
        full = {"message": "socket.accept() out of system resource", "exception": OSError(24, "x")}
        for loop.now in (100.0, 100.5, 159.0, 161.0):
            for _ in range(5):
                loop.call_exception_handler(dict(full))
        assert len(caplog.records) == 2
        loop.call_exception_handler({"message": "another"})
        assert len(caplog.records) == 3


@pytest.mark.parametrize(
    ("limits", "connections", "soft"),
    [((256, 256), 128, 256), ((256, 1024), 896, 1024), ((1024, 10**6), 4096, 4224), ((9, 9), 8, 9)],
)
def test_connections_leave_files_for_everything_else(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], connections: int, soft: int
) -> None:
    held = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: held[0])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, wanted: held.append(wanted))
    assert affordable_connections() == connections
    assert held[-1] == (soft, limits[1])
