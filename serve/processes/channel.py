"""Messages between two processes of this machine: msgpack over one socket."""

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack

from nemo_trt.errors import RequestError, StateError
from nemo_trt.serve.log import LOG

MAX_MESSAGE_BYTES = 2**26
MAX_WAITING_BYTES = 2**27
"""That one side has sent and the other has not read: whoever is so far behind is given up."""
_READ_BYTES = 2**18


class Channel:
    """One end of a socket pair. `send` may be called in any thread, the rest in one event loop.

    Args:
        end: the socket, which the channel closes.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=MAX_MESSAGE_BYTES + _READ_BYTES, strict_map_key=False
        )
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = True

    def first(self, timeout_s: float) -> Any:
        """Wait for the first message, before `start`.

        Raises:
            StateError: the other end was closed.
            TimeoutError: it did not come in time.
        """
        self._socket.settimeout(timeout_s)
        for message in self._unpacker:
            return message
        while data := self._socket.recv(_READ_BYTES):
            self._unpacker.feed(data)
            for message in self._unpacker:
                return message
        raise StateError("The other end of the channel was closed before it said anything.")

    def start(self, on_message: Callable[[Any], None], on_end: Callable[[], None]) -> None:
        """Call back in the running event loop, for each message and once when the other is gone."""
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_end = on_message, on_end
        self._loop.add_reader(self._socket, self._read)
        self._loop.call_soon(self._handle)  # what came with the first one
        self._watch()

    def send(self, message: Any) -> None:
        """Send a message, or drop it where the other end has gone. It never waits.

        Raises:
            RequestError: the message is longer than `MAX_MESSAGE_BYTES`, or holds a number of more
                than 64 bits.
        """
        try:
            data = memoryview(msgpack.packb(message))
        except OverflowError as error:
            raise RequestError(f"Numbers of a request must fit 64 bits: {error}.") from error
        if len(data) > MAX_MESSAGE_BYTES:
            raise RequestError(
                f"What a request says must fit {MAX_MESSAGE_BYTES} bytes, got {len(data)}."
            )
        with self._lock:
            if not self._open:
                return
            if not self._waiting and self._loop is not None:
                data = self._unsent(data)
            if data:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
                if self._waiting_bytes > MAX_WAITING_BYTES:
                    LOG.error("a process does not read what it is sent; it is given up")
                    self._abandon()
                elif len(self._waiting) == 1 and self._loop is not None:
                    with suppress(RuntimeError):  # the loop has been closed
                        self._loop.call_soon_threadsafe(self._watch)

    def close(self) -> None:
        """Close this end; `on_end` is not called. A second call does nothing."""
        with self._lock:
            self._open = False
            self._waiting.clear()
        if self._socket.fileno() >= 0:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._socket)
                self._loop.remove_writer(self._socket)
            self._socket.close()

    def _unsent(self, data: memoryview) -> memoryview:
        """Send as much as the socket takes; return the rest."""
        try:
            return data[self._socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError:  # the other end has gone: reading says so
            return data[:0]

    def _abandon(self) -> None:
        self._open = False
        self._waiting.clear()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # both ends read that it is over

    def _watch(self) -> None:
        """Send what waits when the socket takes it."""
        if self._waiting and self._open and self._loop is not None:
            self._loop.add_writer(self._socket, self._write)

    def _write(self) -> None:
        with self._lock:
            while self._waiting:
                data = self._waiting[0]
                rest = self._unsent(data)
                self._waiting_bytes -= len(data) - len(rest)
                if rest:
                    self._waiting[0] = rest
                    return
                self._waiting.popleft()
            assert self._loop is not None
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._finish()
            return
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            LOG.error("a process sent a message that is too long; it is given up")
            self._finish()
            return
        self._handle()

    def _handle(self) -> None:
        try:
            for message in self._unpacker:
                self._on_message(message)
        except Exception:  # after it, nothing can be trusted that comes
            LOG.exception("a message of another process was not understood; it is given up")
            self._finish()

    def _finish(self) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._on_end()
