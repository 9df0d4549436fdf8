"""Steps in a thread: what their caller waits for, whatever happens meanwhile."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines import step_thread as module
from nemo_trt.engines.base_session import BaseSession
from nemo_trt.engines.session import Logits, StepInputs
from nemo_trt.engines.step_thread import StepThread
from nemo_trt.errors import MachineError, StateError
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.unit

IDS, WHERE = np.zeros((1, 1), np.int64), np.zeros(1, np.int64)


@pytest.fixture
def thread() -> Iterator[StepThread]:
    thread = StepThread()
    yield thread
    thread.close()


def test_calls_run_one_after_the_other_in_one_thread_that_is_not_the_callers(
    thread: StepThread,
) -> None:
    go, order = threading.Event(), []

    def call(at: int) -> int:
        assert go.wait(LIMIT_S)
        order.append(at)
        return threading.get_ident()

    waits = [thread.start(call, at) for at in range(3)]
    go.set()
    (own,) = {wait() for wait in waits}
    assert order == [0, 1, 2] and own != threading.get_ident()


def test_closing_waits_for_the_call_that_runs(thread: StepThread) -> None:
    inside, go, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        inside.set()
        assert go.wait(LIMIT_S)
        ended.set()

    thread.start(call)
    assert inside.wait(LIMIT_S)
    threading.Thread(target=go.set).start()
    thread.close()
    assert ended.is_set()


def test_a_caller_who_is_interrupted_waits_for_the_call_that_runs(
    thread: StepThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, waiting, ended, interrupted = (threading.Event() for _ in range(4))
    wait, result = module.wait, module.Future.result

    def seen(calls: Any) -> Any:
        waiting.set()
        return wait(calls)

    def seen_result(self: Any) -> Any:
        asked.set()
        return result(self)

    def interrupt_once(*_: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def call() -> None:
        assert asked.wait(LIMIT_S)
        while not waiting.wait(0.05):  # a signal just before the main thread waits is not seen
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        ended.set()

    monkeypatch.setattr(module, "wait", seen)
    monkeypatch.setattr(module.Future, "result", seen_result)
    before = signal.signal(signal.SIGINT, interrupt_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.start(call)()
        assert ended.is_set()
    finally:
        waiting.set()
        signal.signal(signal.SIGINT, before)


class Slow(BaseSession):
    """A session whose steps wait until they may end."""

    def __init__(self) -> None:
        self.go, self.inside, self.freed = threading.Event(), threading.Event(), False
        self._thread = StepThread()

    @classmethod
    def opened(cls, bundle: Any) -> "Slow":
        session = cls()
        BaseSession.__init__(session, bundle, max_batch=1, max_seq_len=8, compute_precision="fp32")
        session.capacity = 8
        session._closing.callback(session._free)
        session._closing.callback(session._thread.close)
        return session

    def _step(self, *_: Any) -> Logits:
        self.inside.set()
        assert self.go.wait(LIMIT_S) and not self.freed
        return np.zeros((1, 1, 4), np.float32)

    def _start(self, step: StepInputs) -> Any:
        return self._thread.start(self._whole, step)

    def _free(self) -> None:
        assert not self.inside.is_set() or self.go.is_set(), "a step still runs"
        self.freed = True


class Bundle:
    """As much of one as a session needs that computes nothing."""

    config: Any = None


def test_nothing_is_asked_of_a_session_while_its_step_runs() -> None:
    with Slow.opened(Bundle()) as session:
        session.go.set()
        session.launch(IDS, WHERE, IDS)
        for call in (
            lambda: session.launch(IDS, WHERE, IDS),
            lambda: session.step(IDS, WHERE, IDS),
            lambda: session.bind(8),
            lambda: session.read_cache(0, "key", 0, 0, 1),
            lambda: session.write_cache(0, "key", 0, 0, np.zeros((1, 1, 1))),
            lambda: session.copy_cache(0, 0, 1),
        ):
            with pytest.raises(StateError, match="must be collected before"):
                call()
        assert session.collect().logits(0, 0, 1).shape == (1, 4)
        with pytest.raises(StateError, match="must be launched before"):
            session.collect()


def test_closing_waits_for_a_step_that_nobody_collects() -> None:
    session = Slow.opened(Bundle())
    session.launch(IDS, WHERE, IDS)
    assert session.inside.wait(LIMIT_S)
    closing = threading.Thread(target=session.close)
    closing.start()
    assert not session.freed
    session.go.set()
    closing.join(LIMIT_S)
    assert session.freed


def test_a_step_that_fails_or_finds_no_memory_says_so_when_it_is_collected() -> None:
    with Slow.opened(Bundle()) as session:
        for error, expected in ((MachineError("planted"), "planted"), (MemoryError(), "no memory")):

            def fails(*_: Any, error: Exception = error) -> Logits:
                raise error

            session._step = fails  # type: ignore[method-assign]
            session.launch(IDS, WHERE, IDS)
            with pytest.raises(MachineError, match=expected):
                session.collect()
