"""A Runner and its session belong to one process, and to one thread at a time."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import StateError
from tests.forking import forked, refused
from tests.waiting import LIMIT_S, within

pytestmark = pytest.mark.model
PROMPT, OTHER = [1, 2, 3, 4, 5], [9, 8, 7]
GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    with within():
        yield


@pytest.fixture
def runner(tiny: Any) -> Iterator[Runner]:
    with Runner.open(tiny.bundle, max_batch=2, max_seq_len=64, threads=1) as runner:
        yield runner


def ask(runner: Runner, prompt: list[int] = PROMPT) -> list[int]:
    return [event.token_id for event in runner.generate(prompt, GREEDY)]


class Held:
    """A thread that asks a Runner and stays within its first step until it is released."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self.found: list[int] | StateError | None = None
        self._go, inside = threading.Event(), threading.Event()
        session: Any = runner.session
        really_step, really_close = session._step, session.close

        def step(*arguments: Any) -> Any:
            inside.set()
            assert self._go.wait(LIMIT_S)
            logits = really_step(*arguments)
            self.order.append("stepped")
            return logits

        def close() -> None:
            self.order.append("closed")
            really_close()

        def run() -> None:
            try:
                self.found = ask(runner)
            except StateError as error:
                self.found = error

        monkeypatch.setattr(session, "_step", step)
        monkeypatch.setattr(session, "close", close)
        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert inside.wait(LIMIT_S)

    def release(self) -> None:
        """Let it go on, and wait until it has its answer."""
        self._go.set()
        self._thread.join()


def test_a_second_thread_is_refused_while_the_first_is_in_a_call(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(runner)
    held = Held(runner, monkeypatch)
    ids = np.zeros((1, 1), np.int64)
    calls: dict[str, Callable[[], Any]] = {
        "tokens": lambda: runner.tokens(0),
        "rewind": lambda: runner.rewind(0),
        "prefill": lambda: runner.prefill({1: OTHER}),
        "decode": lambda: runner.decode({1: 3}),
        "generate": lambda: ask(runner, OTHER),
        "step": lambda: runner.session.step(ids, np.zeros(1, np.int64), ids, 1),
        "read": lambda: runner.session.read_cache(0, "key", 0, 0, 1),
    }
    found = refused(calls)
    held.release()
    for name, words in found.items():
        assert words.startswith("StateError: Cannot use a "), (name, words)
        assert "from two threads at once" in words, (name, words)
    assert held.found == expected
    assert ask(runner) == expected


def test_closing_waits_for_the_step_that_runs(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(runner, monkeypatch)
    closer = threading.Thread(target=runner.close)
    closer.start()
    held.release()
    closer.join()
    assert held.order.index("closed") > 0
    assert held.order[-1] == "closed"
    if len(held.order) < 7:  # prefill and five steps: it was closed before the last
        assert isinstance(held.found, StateError)


def test_three_threads_get_the_right_answer_or_an_error(runner: Runner) -> None:
    expected = ask(runner)
    found: list[list[int] | StateError] = []

    def run() -> None:
        try:
            found.append(ask(runner))
        except StateError as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(one == expected for one in found if not isinstance(one, StateError))


@pytest.mark.parametrize("between", ["generate", "rewind", "prefill", "decode"])
def test_an_answer_that_another_call_came_between_is_an_error(runner: Runner, between: str) -> None:
    """In one thread too: both would write into row 0."""
    expected = ask(runner, OTHER)
    first = runner.generate(PROMPT, GREEDY)
    next(first)
    if between == "generate":
        assert ask(runner, OTHER) == expected
    elif between == "rewind":
        runner.rewind(0)
    elif between == "prefill":
        runner.prefill({0: OTHER})
    else:
        runner.decode({0: 3})
    with pytest.raises(StateError, match="Row 0 must be left alone"):
        list(first)


def test_another_row_may_be_used_between_two_tokens(runner: Runner) -> None:
    expected = ask(runner)
    runner.rewind(0)
    found = []
    for event in runner.generate(PROMPT, GREEDY):
        found.append(event.token_id)
        runner.prefill({1: OTHER})
    assert found == expected


def test_nothing_runs_in_a_forked_process_and_all_goes_on_in_its_parent(runner: Runner) -> None:
    expected = ask(runner)
    begun = runner.generate(PROMPT, GREEDY)
    tokens = [next(begun).token_id]
    session, ids = runner.session, np.zeros((1, 1), np.int64)
    block = np.zeros((runner.config.num_kv_heads, 1, runner.config.head_dim), np.float32)
    calls: dict[str, Callable[[], Any]] = {
        **{
            name: lambda name=name: getattr(runner, name)  # type: ignore[misc]
            for name in ("session", "config", "tokenizer", "max_seq_len", "max_batch")
        },
        "tokens": lambda: runner.tokens(0),
        "rewind": lambda: runner.rewind(0),
        "prefill": lambda: runner.prefill({0: OTHER}),
        "decode": lambda: runner.decode({0: 3}),
        "generate": lambda: ask(runner),
        "an answer that was begun": lambda: next(begun),
        "bind": lambda: session.bind(2),
        "step": lambda: session.step(ids, np.zeros(1, np.int64), ids),
        "read": lambda: session.read_cache(0, "key", 0, 0, 1),
        "write": lambda: session.write_cache(0, "key", 0, 0, block),
    }

    def child() -> dict[str, str]:
        found = refused(calls)
        runner.close()  # nothing of the parent's is freed, and nothing hangs
        session.close()
        return found

    for name, words in forked(child).items():
        assert words.startswith("StateError: Cannot use a "), (name, words)
        assert "forked" in words, (name, words)
    assert [*tokens, *(event.token_id for event in begun)] == expected
