"""Two front ends before one engine, in one event loop: what each is told, and what it leaves."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.errors import MachineError, StateError
from nemo_trt.serve import ServeOptions
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.serve.processes import remote_service
from nemo_trt.serve.processes.channel import Channel
from nemo_trt.serve.processes.hub import Hub
from nemo_trt.serve.processes.remote_service import RemoteService
from tests.waiting import LIMIT_S, until_async

pytestmark = pytest.mark.model

LONG = SamplingParams(max_tokens=30_000, ignore_eos=True)
SHORT = SamplingParams(max_tokens=2, ignore_eos=True)
PROMPT = "Once upon a time"


@pytest.fixture(scope="module", autouse=True)
def _one_tokenizer() -> Iterator[None]:
    """Read once: it takes seconds, and knows no state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_service, "open_tokenizer", cache(open_tokenizer))
        yield


@dataclass
class Apart:
    """A hub with two front ends, and the hub's ends of their channels."""

    hub: Hub
    services: list[RemoteService]
    channels: list[Channel]

    async def join(self) -> RemoteService:
        """One front end more."""
        ours, theirs = map(Channel, socket.socketpair())
        self.hub.join(ours)
        _, settings = theirs.first(LIMIT_S)
        self.channels.append(ours)
        self.services.append(RemoteService(theirs, settings))
        await self.services[-1].begin()
        return self.services[-1]

    async def open(self) -> None:
        """Until both take requests."""
        await asyncio.to_thread(self.hub.lifetime.wait)
        self.hub.tell_state()
        for service in self.services:
            await asyncio.to_thread(service.wait)


@asynccontextmanager
async def apart(bundle: Path) -> AsyncIterator[Apart]:
    options = ServeOptions(allow_unvalidated=True)
    lifetime = Lifetime.begin(bundle, "cpu", options, max_batch=2, max_seq_len=32_768, threads=1)
    found = Apart(Hub(lifetime, created=1), [], [])
    try:
        for _ in range(2):
            await found.join()
        yield found
    finally:
        for service in found.services:
            service.close()
        await asyncio.to_thread(found.hub.close)
        for channel in found.channels:
            channel.close()


def run(work: Callable[[Apart], Awaitable[None]], bundle: Path) -> None:
    async def within_time() -> None:
        async with apart(bundle) as found:
            await work(found)

    asyncio.run(asyncio.wait_for(within_time(), 2 * LIMIT_S))


def test_every_front_end_is_told_where_the_engines_life_stands(
    tekken_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open, really_open = threading.Event(), Runner.open

    def slow(*arguments: Any, **options: Any) -> Runner:
        may_open.wait(LIMIT_S)
        return really_open(*arguments, **options)

    monkeypatch.setattr(Runner, "open", slow)

    async def live(found: Apart) -> None:
        await until_async(lambda: all(each.verdict for each in found.services))
        assert [each.state for each in found.services] == ["starting"] * 2
        may_open.set()
        await found.open()
        assert [each.state for each in found.services] == ["ready"] * 2
        one, other = (each.describe() for each in found.services)
        assert one == other and one["slots"] == 2 and one["tools"]
        running = found.services[0].require().generate(PROMPT, LONG)
        await running.accepted()
        assert not await found.hub.drain(0)
        await until_async(lambda: [each.state for each in found.services] == ["draining"] * 2)
        await asyncio.to_thread(found.hub.close)
        with pytest.raises(StateError, match="shutting down"):
            async for _ in running:
                pass

    run(live, tekken_bundle)


def test_every_front_end_is_told_why_an_engine_does_not_open(
    tekken_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Runner:
        raise MachineError("no memory for that")

    monkeypatch.setattr(Runner, "open", broken)

    async def live(found: Apart) -> None:
        with pytest.raises(MachineError):
            await asyncio.to_thread(found.hub.lifetime.wait)
        found.hub.tell_state()
        for service in found.services:
            with pytest.raises(MachineError, match="no memory for that"):
                await asyncio.to_thread(service.wait)
            assert (service.state, service.failure) == ("failed", "no memory for that")

    run(live, tekken_bundle)


def test_a_front_end_that_comes_later_begins_when_it_refuses_nobody(tekken_bundle: Path) -> None:
    async def come(found: Apart) -> None:
        await found.open()
        later = await found.join()
        assert later.state == "ready" and later.require().facts.slots == 2

    run(come, tekken_bundle)


def test_metrics_are_those_of_all_front_ends(tekken_bundle: Path) -> None:
    async def ask(found: Apart) -> None:
        await found.open()
        for service in found.services:
            service.metrics.count_error(418)
            async with service.require().generate(PROMPT, SHORT) as answer:
                assert [event.token_id async for event in answer]
        texts = [(await each.metrics_text()).decode() for each in found.services]
        for text in texts:
            assert "\nnemo_trt_generation_tokens_total 4.0\n" in text
            assert '\nnemo_trt_requests_total{end="length"} 2.0\n' in text
            assert '\nnemo_trt_errors_total{code="418"} 2.0\n' in text

    run(ask, tekken_bundle)


def test_a_front_end_that_dies_leaves_its_slots_to_others(tekken_bundle: Path) -> None:
    async def die(found: Apart) -> None:
        await found.open()
        dying, living = (each.require() for each in found.services)
        for answer in [dying.generate(PROMPT, LONG) for _ in range(2)]:
            await anext(aiter(answer))  # both slots are taken
        waiting = await living.generate(PROMPT, SHORT).accepted()
        found.services[0].close()
        assert len([event async for event in waiting]) == 2
        await until_async(lambda: found.hub.links[0].lost.is_set())
        text = found.hub.lifetime.metrics.text().decode()
        assert '\nnemo_trt_requests_total{end="cancelled"} 2.0\n' in text
        assert "\nnemo_trt_requests_running 0.0\n" in text

    run(die, tekken_bundle)


def test_an_engine_whose_process_has_gone_is_an_error_of_each_request(tekken_bundle: Path) -> None:
    async def die(found: Apart) -> None:
        await found.open()
        service, other = found.services
        answer = service.require().generate(PROMPT, LONG)
        await anext(aiter(answer))
        found.channels[0].close()
        with pytest.raises(StateError, match="engine's process has ended"):
            async for _ in answer:
                pass
        assert service.lost and service.state == "failed" and service.failure
        with pytest.raises(StateError, match="engine's process has ended"):
            await service.metrics_text()
        assert other.state == "ready"

    run(die, tekken_bundle)


def test_what_fails_in_the_engines_process_is_answered(
    tekken_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(found: Apart) -> None:
        await found.open()
        service = found.services[0]
        may_end, begun = threading.Event(), threading.Event()

        def broken(_: str) -> Any:
            begun.set()
            may_end.wait(LIMIT_S)
            raise ZeroDivisionError("planted")

        monkeypatch.setattr(found.hub, "_compiled", broken)
        compiling = [
            asyncio.create_task(asyncio.to_thread(service.grammars().regex, text)) for text in "ab"
        ]
        await asyncio.to_thread(begun.wait, LIMIT_S)  # the other one waits
        await until_async(lambda: found.hub._compilers._pending == 2)
        await asyncio.to_thread(found.hub.close)
        may_end.set()
        said = await asyncio.gather(*compiling, return_exceptions=True)
        assert all(isinstance(error, StateError) for error in said)
        words = sorted(map(str, said))
        assert "ZeroDivisionError: planted" in words[1] and "shutting down" in words[0]

    run(ask, tekken_bundle)
    assert "a front end's question failed" in caplog.text
