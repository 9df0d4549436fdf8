"""The engine for services: coroutines get the answers that the Runner gives."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import (
    CapacityError,
    DeadlineError,
    MachineError,
    QueueFullError,
    RequestError,
    StateError,
)
from nemo_trt.serve import Answer, AsyncEngine
from tests.waiting import LIMIT_S, until, until_async

pytestmark = pytest.mark.model

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
LONG = SamplingParams(max_tokens=400, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(shallow: Any) -> Iterator[AsyncEngine]:
    runner = Runner.open(shallow.bundle, max_batch=2, max_seq_len=512)
    engine = AsyncEngine(runner, max_queue=3)
    yield engine
    engine.close()


def figure(engine: AsyncEngine, name: str) -> float:
    """A metric's value; 0 where it is not there yet."""
    lines = engine.metrics.text().decode().splitlines()
    wanted = f"nemo_trt_{name} "
    return next((float(line.split()[-1]) for line in lines if line.startswith(wanted)), 0)


async def text(answer: Answer) -> str:
    return "".join([event.text async for event in answer])


def test_many_coroutines_get_what_the_runner_answers(engine: AsyncEngine, shallow: Any) -> None:
    prompts = ["The capital of France is", "Water boils at", "Once upon a time", "2 + 2 ="]

    async def ask() -> list[str]:
        return await asyncio.gather(*(text(engine.generate(p, PARAMS)) for p in prompts))

    with Runner.open(shallow.bundle, max_seq_len=512) as runner:
        expected = ["".join(event.text for event in runner.generate(p, PARAMS)) for p in prompts]
    assert asyncio.run(ask()) == expected


def test_usage_is_known_at_the_end(engine: AsyncEngine) -> None:
    async def ask() -> Answer:
        async with engine.generate(list(range(40, 60)), PARAMS) as answer:
            assert answer.ended is None
            assert len([event async for event in answer]) == 12
        return answer

    ended = asyncio.run(ask()).ended
    assert ended
    assert ended.reason == "length"
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (20, 12)


def test_leaving_an_answer_frees_its_slot(engine: AsyncEngine) -> None:
    async def ask() -> None:
        for _ in range(6):  # more than slots and queue hold
            async with engine.generate("Once upon a time", LONG) as answer:
                async for _ in answer:
                    break
        assert len(await text(engine.generate("Hello", PARAMS))) > 0

    asyncio.run(ask())
    until(lambda: b"nemo_trt_requests_running 0.0" in engine.metrics.text())


def test_a_cancelled_task_frees_its_slot_even_before_it_was_accepted(engine: AsyncEngine) -> None:
    async def one() -> None:
        async with engine.generate("Once upon a time", LONG) as answer:
            await text(answer)

    async def ask() -> None:
        for delay in (0.0, 0.001, 0.2):
            task = asyncio.create_task(one())
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await text(engine.generate("Hello", PARAMS))
        await until_async(lambda: not engine._asked)

    cancelled = 'requests_total{end="cancelled"}'
    before = figure(engine, cancelled)
    asyncio.run(ask())
    assert figure(engine, cancelled) - before == 3


def test_refusals_come_before_the_first_token(engine: AsyncEngine) -> None:
    async def ask() -> None:
        with pytest.raises(CapacityError, match="512"):
            await engine.generate([5] * 600).accepted()
        with pytest.raises(RequestError):
            await engine.generate([]).accepted()
        running = [await engine.generate("Once upon a time", LONG).accepted() for _ in range(2)]
        async for _ in running[0]:
            break
        async for _ in running[1]:
            break
        waiting = [await engine.generate("Hello", PARAMS).accepted() for _ in range(3)]
        with pytest.raises(QueueFullError, match="3 requests"):
            await engine.generate("Hello", PARAMS).accepted()
        for answer in running:
            answer.cancel()
        for answer in waiting:
            assert await text(answer)

    asyncio.run(ask())


def test_a_deadline_is_an_error(engine: AsyncEngine) -> None:
    async def ask() -> None:
        with pytest.raises(DeadlineError):
            await text(engine.generate("Once upon a time", LONG, timeout_s=0.3))

    asyncio.run(ask())


def test_metrics_count_what_happened(engine: AsyncEngine) -> None:
    names = ["prompt_tokens_total", "generation_tokens_total", "prefix_hit_tokens_total"]
    before = [figure(engine, name) for name in names]
    prompt = list(range(300, 340))

    async def ask() -> None:
        for _ in range(2):
            await text(engine.generate(prompt, PARAMS))

    asyncio.run(ask())
    after = [figure(engine, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [80, 24, 39]
    assert figure(engine, "time_to_first_token_seconds_count") >= 2


def test_closing_ends_what_runs_with_an_error(shallow: Any) -> None:
    async def ask() -> None:
        engine = await AsyncEngine.open(shallow.bundle, max_seq_len=512)
        answer = await engine.generate("Once upon a time", LONG).accepted()
        engine.close()
        engine.close()
        with pytest.raises(StateError, match="shutting down"):
            await text(answer)
        with pytest.raises(StateError, match="shutting down"):
            await engine.generate("Hello").accepted()

    asyncio.run(ask())


def test_closing_tells_who_waits_before_the_running_step_is_over(
    shallow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    async def ask() -> None:
        engine = await AsyncEngine.open(shallow.bundle, max_seq_len=512)
        step = engine._scheduler.step

        def slow() -> Any:
            begun.set()
            assert go.wait(LIMIT_S)
            return step()

        monkeypatch.setattr(engine._scheduler, "step", slow)
        answer = await engine.generate("Once upon a time", LONG).accepted()
        await asyncio.to_thread(begun.wait)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        with pytest.raises(StateError, match="shutting down"):
            await asyncio.wait_for(text(answer), LIMIT_S / 2)
        assert not closing.done()  # nothing is freed that a step still uses
        go.set()
        await closing

    asyncio.run(ask())


def test_draining_finishes_what_runs_and_takes_nothing_more(shallow: Any) -> None:
    async def ask() -> None:
        async with AsyncEngine.open(shallow.bundle, max_seq_len=512) as engine:
            answer = await engine.generate("Once upon a time", PARAMS).accepted()
            draining = asyncio.create_task(engine.drain(timeout_s=LIMIT_S))
            await asyncio.sleep(0)
            with pytest.raises(StateError, match="no more requests"):
                await engine.generate("Hello").accepted()
            assert await text(answer)
            assert await draining

    asyncio.run(ask())


@pytest.mark.parametrize("failure", [MachineError("no memory"), ZeroDivisionError("a bug")])
def test_nobody_waits_for_an_engine_that_failed(
    shallow: Any, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expected error ends the requests concerned; a fault of ours the whole engine, in words."""

    async def ask() -> None:
        async with AsyncEngine.open(shallow.bundle, max_seq_len=512) as engine:
            working = type(engine.session)._step

            def broken(*_: object) -> None:
                raise failure

            monkeypatch.setattr(type(engine.session), "_step", broken)
            expected = MachineError if isinstance(failure, MachineError) else StateError
            with pytest.raises(expected):
                await text(engine.generate("Hello", PARAMS))
            monkeypatch.setattr(type(engine.session), "_step", working)
            if isinstance(failure, MachineError):
                assert await text(engine.generate("Hello", PARAMS))
            else:
                assert engine.failure is failure
                with pytest.raises(StateError, match="a bug"):
                    await engine.generate("Hello", PARAMS).accepted()

    asyncio.run(ask())
