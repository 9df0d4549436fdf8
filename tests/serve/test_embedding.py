"""The engine inside other programs: forks, failing starts, closing meanwhile, no memory."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nemo_trt.engines import ort_session
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import CapacityError, RequestError, StateError
from nemo_trt.serve import AsyncEngine, Request, Scheduler, create_app
from nemo_trt.serve.options import ServeOptions
from tests.forking import forked, refused
from tests.waiting import LIMIT_S, until, until_async, within

pytestmark = pytest.mark.model
PARAMS = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    with within():
        yield


def opened(bundle: Path) -> Runner:
    return Runner.open(bundle, max_seq_len=64, threads=1)


@pytest.fixture
def engine(tekken_bundle: Path) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(opened(tekken_bundle))
    yield engine
    engine.close()


async def tokens(engine: AsyncEngine, prompt: list[int]) -> list[int]:
    return [event.token_id async for event in engine.generate(prompt, PARAMS)]


def test_a_forked_engine_refuses_every_call_and_the_parents_goes_on(engine: AsyncEngine) -> None:
    expected = asyncio.run(tokens(engine, [5, 6, 7]))
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: asyncio.run(tokens(engine, [5, 6, 7])),
        "drain": lambda: asyncio.run(engine.drain(LIMIT_S)),
        "wait_stopped": engine.wait_stopped,
    }

    def child() -> dict[str, str]:
        found = refused(calls)
        engine.close()  # nothing of the parent's is freed, and nothing hangs
        return {**found, "failure": f"{type(engine.failure).__name__}: {engine.failure}"}

    for name, words in forked(child).items():
        assert words.startswith("StateError: "), (name, words)
        assert "forked" in words, (name, words)
    assert engine.failure is None
    assert asyncio.run(tokens(engine, [5, 6, 7])) == expected


def test_a_forked_server_says_503_and_answers_nothing(tekken_bundle: Path) -> None:
    options = ServeOptions(allow_unvalidated=True)
    app = create_app(tekken_bundle, options=options, max_batch=1, max_seq_len=64, threads=1)
    app.state.service.wait()
    small = {"prompt": [5, 6, 7], "max_tokens": 2}
    large = {"prompt": "a " * 40_000, "max_tokens": 2}  # parsed by a thread of the parent's

    async def ask() -> list[tuple[int, str]]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answers = [await client.get(path) for path in ("/health/ready", "/health", "/ping")]
            answers += [await client.post("/v1/completions", json=body) for body in (small, large)]
            answers.append(await client.post("/tokenize", json={"prompt": "a"}))
            return [(answer.status_code, answer.text) for answer in answers]

    def child() -> list[tuple[int, str]]:
        found = asyncio.run(ask())
        assert asyncio.run(app.state.service.drain(LIMIT_S))
        app.state.service.close()
        return found

    try:
        found = forked(child)
        assert [status for status, _ in found] == [503] * 6, found
        assert "forked" in found[0][1]
        assert [status for status, _ in asyncio.run(ask())][:4] == [200] * 4
    finally:
        app.state.service.close()


@pytest.mark.parametrize("why", ["options", "no tokenizer", "no thread"])
def test_an_engine_that_does_not_start_closes_its_runner(
    why: str, tekken_bundle: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened(tiny.bundle if why == "no tokenizer" else tekken_bundle)
    session = runner.session
    if why == "no thread":

        def refuse(_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises((RequestError, RuntimeError)):
        AsyncEngine(runner, prefill_tokens=0 if why == "options" else 512)
    for use in (lambda: runner.session, lambda: session.bind(1)):
        with pytest.raises(StateError, match="closed"):
            use()


class Held:
    """Steps of an engine's session wait until they are let go."""

    def __init__(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        session: Any = engine.session
        really_step = session._step

        def step(*arguments: Any) -> Any:
            self.inside.set()
            assert self.go.wait(LIMIT_S)
            return really_step(*arguments)

        monkeypatch.setattr(session, "_step", step)


def test_a_request_that_comes_in_the_last_step_is_answered(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(engine, monkeypatch)

    async def ask() -> None:
        running = await engine.generate([5, 6, 7], PARAMS).accepted()
        await until_async(held.inside.is_set)
        late = asyncio.create_task(engine.generate([5, 6], PARAMS).accepted())
        await until_async(lambda: not engine._inbox.empty())
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await until_async(lambda: not engine._open)
        held.go.set()
        await closing
        with pytest.raises(StateError, match="shutting down"):
            await asyncio.wait_for(late, LIMIT_S)
        with pytest.raises(StateError, match="shutting down"):
            async for _ in running:
                pass

    asyncio.run(ask())


def test_a_request_behind_the_last_look_at_the_inbox_is_answered(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen open by its task, and put there when the engine's thread had ended."""
    refusal, looked = engine._refusal, list[int]()

    def late() -> Any:
        looked.append(1)
        return refusal() if len(looked) > 1 else None

    engine.close()
    monkeypatch.setattr(engine, "_refusal", late)

    async def ask() -> None:
        with pytest.raises(StateError, match="shutting down"):
            await asyncio.wait_for(engine.generate([5, 6], PARAMS).accepted(), LIMIT_S)

    asyncio.run(ask())


@pytest.mark.parametrize("cancelled", [False, True])
def test_opening_does_not_hold_the_event_loop(
    cancelled: bool, tekken_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open, go, closed = Runner.open, threading.Event(), list[Any]()
    really_close = Runner.close

    def slow(*arguments: Any, **options: Any) -> Runner:
        assert go.wait(LIMIT_S), "the loop must go on while an engine opens"
        return really_open(*arguments, **options)

    monkeypatch.setattr(Runner, "open", slow)
    monkeypatch.setattr(Runner, "close", lambda self: (closed.append(self), really_close(self)))

    async def use() -> None:
        async with AsyncEngine.open(tekken_bundle, max_seq_len=64, threads=1) as engine:
            assert len(await tokens(engine, [5, 6, 7])) == 4

    async def main() -> None:
        task = asyncio.create_task(use())
        await asyncio.sleep(0)  # it waits for the thread now
        if cancelled:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        go.set()
        if not cancelled:
            await task

    asyncio.run(main())
    until(lambda: len(closed) == 1)  # one that nobody waits for any more too


PROMPT, SHORT = list(range(1, 251)), [9, 8, 7]


def answers(scheduler: Scheduler, *prompts: list[int], count: int) -> list[Any]:
    """The tokens of each request, or its error."""
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    numbers = [
        scheduler.submit(Request(prompt=prompt, params=params, speculate=False))
        for prompt in prompts
    ]
    found: dict[int, Any] = {number: [] for number in numbers}
    while not scheduler.idle:
        for output in scheduler.step():
            if output.event:
                found[output.request_id].append(output.event.token_id)
            if output.ended and output.ended.error:
                found[output.request_id] = output.ended.error
    return list(found.values())


def test_without_memory_for_a_longer_cache_one_request_ends(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_grow = OrtSession._grow

    def grow(self: OrtSession, capacity: int) -> None:
        if capacity > 256:
            raise MemoryError
        really_grow(self, capacity)

    with OrtSession.open(tiny.bundle, max_batch=2, max_seq_len=1024, threads=1) as session:
        scheduler = Scheduler(session)
        (expected,) = answers(scheduler, SHORT, count=20)
        monkeypatch.setattr(OrtSession, "_grow", grow)
        error, short = answers(scheduler, PROMPT, SHORT, count=20)
        assert isinstance(error, CapacityError)
        assert "no memory" in str(error)
        assert short == expected
        # A row that rests and holds nearly all gives way to what runs beside it.
        assert len(answers(scheduler, PROMPT, count=6)[0]) == 6
        assert answers(scheduler, SHORT, count=20) == [expected]


def test_a_cache_that_cannot_grow_stays_as_it_was(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OrtSession.open(tiny.bundle, max_batch=1, max_seq_len=1024, threads=1) as session:
        ids, last = np.array([PROMPT[:200]]), np.array([[199]])
        session.bind(200)
        expected = np.array(session.step(ids, np.zeros(1, np.int64), last))
        calls, zeros = list[int](), np.zeros

        def failing(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) > 2:
                raise MemoryError
            return zeros(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ort_session.np, "zeros", failing)
            with pytest.raises(CapacityError, match="has no memory"):
                session.bind(900)
        assert session.capacity == 256
        found = session.step(ids, np.zeros(1, np.int64), last)
        np.testing.assert_array_equal(found, expected)
        session.bind(900)
        assert session.capacity >= 900
