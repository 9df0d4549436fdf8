"""Messages between processes: all of them, in order, bounded, whoever reads slowly."""

import asyncio
import logging
import socket
import threading
from collections.abc import Coroutine
from contextlib import closing
from typing import Any

import pytest

from nemo_trt.errors import RequestError, StateError
from nemo_trt.serve.processes import channel as channels
from nemo_trt.serve.processes.channel import MAX_MESSAGE_BYTES, Channel
from tests.waiting import LIMIT_S, until_async

pytestmark = pytest.mark.unit


class Heard:
    """What one end was told."""

    def __init__(self, channel: Channel) -> None:
        self.messages: list[Any] = []
        self.ends = 0
        channel.start(self.messages.append, self._end)

    def _end(self) -> None:
        self.ends += 1


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT_S))


def test_messages_of_several_threads_arrive_whole_and_each_threads_in_order() -> None:
    async def talk() -> None:
        one, other = map(Channel, socket.socketpair())
        with closing(one), closing(other):
            heard = Heard(other)
            Heard(one)

            def send(name: int) -> None:
                for at in range(200):
                    one.send([name, at, b"x" * (at * 37)])

            threads = [threading.Thread(target=send, args=(name,)) for name in range(3)]
            for thread in threads:
                thread.start()
            await until_async(lambda: len(heard.messages) == 600)
            for thread in threads:
                thread.join()
            for name in range(3):
                rows = [row for row in heard.messages if row[0] == name]
                assert [row[1] for row in rows] == list(range(200))
                assert all(row[2] == b"x" * (row[1] * 37) for row in rows)

    run(talk())


def test_what_is_larger_than_the_sockets_buffer_waits_and_arrives() -> None:
    async def talk() -> None:
        one, other = map(Channel, socket.socketpair())
        with closing(one), closing(other):
            Heard(one)
            text = "é" * 2_000_000
            one.send([text, {1: 2.5, 7: None}])
            one.send("behind it")
            heard = Heard(other)  # reads now
            await until_async(lambda: len(heard.messages) == 2)
            assert heard.messages == [[text, {1: 2.5, 7: None}], "behind it"]

    run(talk())


def test_the_first_message_comes_before_a_loop_runs_and_the_next_are_kept() -> None:
    one, other = map(Channel, socket.socketpair())

    async def send() -> None:
        Heard(one)
        one.send("first")
        one.send("second")

    async def read() -> None:
        heard = Heard(other)
        await until_async(lambda: heard.messages == ["second"])

    with closing(one), closing(other):
        run(send())
        assert other.first(LIMIT_S) == "first"
        run(read())


def test_nothing_at_all_before_the_end_is_an_error() -> None:
    one, other = map(Channel, socket.socketpair())
    one.close()
    with closing(other), pytest.raises(StateError, match="closed before it said anything"):
        other.first(LIMIT_S)


def test_a_message_that_is_too_long_is_refused_where_it_is_sent() -> None:
    one, other = map(Channel, socket.socketpair())
    with closing(one), closing(other), pytest.raises(RequestError, match="must fit 67108864"):
        one.send(b"x" * MAX_MESSAGE_BYTES)


def test_what_was_read_does_not_count_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that lives long sends more in all than may wait at once."""
    monkeypatch.setattr(channels, "MAX_WAITING_BYTES", 6_000_000)

    async def talk() -> None:
        one, other = map(Channel, socket.socketpair())
        with closing(one), closing(other):
            Heard(one)
            heard = Heard(other)
            for number in range(4):
                one.send([number, b"x" * 4_000_000])  # most of it waits for the socket
                await until_async(lambda: bool(heard.ends) or len(heard.messages) > number)  # noqa: B023
            assert [message[0] for message in heard.messages] == [0, 1, 2, 3]

    run(talk())


def test_who_does_not_read_is_given_up_and_costs_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channels, "MAX_WAITING_BYTES", 2**20)

    async def talk() -> None:
        one, other = map(Channel, socket.socketpair())
        with closing(one), closing(other):
            heard = Heard(one)
            for _ in range(100):
                one.send(b"x" * 2**16)
            await until_async(lambda: heard.ends == 1)
            assert not one._waiting
            one.send("nobody hears")

    run(talk())
    assert "is given up" in caplog.text


@pytest.mark.parametrize("sent", [b"\xc1", b"\xdb\xff\xff\xff\xff" + 2**17 * b"x"])
def test_what_is_no_message_ends_the_channel(
    sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channels, "MAX_MESSAGE_BYTES", 2**16)
    monkeypatch.setattr(channels, "_READ_BYTES", 2**12)

    async def talk() -> None:
        one, raw = socket.socketpair()
        channel = Channel(one)
        with closing(channel), raw:
            heard = Heard(channel)
            raw.send(sent)
            await until_async(lambda: heard.ends == 1)

    run(talk())
    assert caplog.records[0].levelno >= logging.ERROR


def test_an_end_is_told_once_and_only_to_the_other_side() -> None:
    async def talk() -> None:
        one, other = map(Channel, socket.socketpair())
        mine, theirs = Heard(one), Heard(other)
        other.send("last")
        other.close()
        other.close()
        await until_async(lambda: mine.ends == 1)
        assert mine.messages == ["last"] and theirs.ends == 0
        one.send("to nobody")
        one.close()

    run(talk())


def test_the_longest_message_arrives_with_what_comes_behind_it() -> None:
    async def talk() -> None:
        one, other = map(Channel, socket.socketpair())
        with closing(one), closing(other):
            Heard(one)
            longest = b"x" * (MAX_MESSAGE_BYTES - 5)
            one.send(longest)
            for _ in range(3):
                one.send(b"y" * channels._READ_BYTES)
            heard = Heard(other)
            await until_async(lambda: len(heard.messages) == 4)
            assert heard.messages[0] == longest

    run(talk())


def test_a_number_that_no_message_holds_is_refused_where_it_is_sent() -> None:
    one, other = map(Channel, socket.socketpair())
    with closing(one), closing(other), pytest.raises(RequestError, match="must fit 64 bits"):
        one.send([2**64])
