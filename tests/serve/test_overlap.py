"""Work that overlaps with a running step: the same answers as without it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.session import CacheBlock, Logits, Tokens
from nemo_trt.engines.step_result import StepResult, WholeLogits
from nemo_trt.errors import MachineError
from nemo_trt.serve import Request, Scheduler

from .test_scheduler import GREEDY, LENGTH, TOKENS, alone, answers, drain, ends, runner

pytestmark = pytest.mark.model
__all__ = ["runner"]


class Overlapping(OrtSession):
    """Runs a step when it is collected, as late as a device may; nothing else may happen before."""

    overlaps = True
    launched: tuple[Tokens, Tokens, Tokens, int] | None = None
    fail_at: int | None = None
    num_steps = 0

    def launch(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int = 0,
        temperatures: Logits | None = None,
        pages: None = None,
    ) -> None:
        assert self.launched is None, "one step at a time"
        self.launched = input_ids, write_indices, logit_indices, first_row

    def collect(self) -> StepResult:
        assert self.launched is not None
        arguments, self.launched = self.launched, None
        self.num_steps += 1
        if self.num_steps == self.fail_at:
            raise MachineError("planted")
        return WholeLogits(self.step(*arguments))

    def write_cache(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        assert self.launched is None, "a step runs"
        super().write_cache(layer, kind, row, start, block)

    def copy_cache(self, source: int, target: int, length: int) -> None:
        assert self.launched is None, "a step runs"
        super().copy_cache(source, target, length)


@pytest.fixture
def session(tiny: Any) -> Iterator[Overlapping]:
    with Overlapping.open(tiny.bundle, max_batch=3, max_seq_len=LENGTH, threads=1) as session:
        yield session


class Alphabet:
    """A grammar: tokens below 100, then even ones, in turn; `length` of them."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def finished(self) -> bool:
        return self._left == 0

    def allowed(self) -> np.ndarray:
        mask = np.arange(512) < 100
        return mask if self._left % 2 else np.arange(512) % 2 == 0

    def accept(self, token_id: int) -> None:
        assert self.allowed()[token_id] and self._left
        self._left -= 1


class Letters:
    """A tokenizer: each token is a letter."""

    vocab_size, bos_id, eos_ids, tool_calls_id = 512, 1, (2,), None

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        return bytes([97 + token_id % 26])


def requests() -> list[tuple[Request, int | None]]:
    """Of every kind, each with the step after which it is cancelled, if it is."""
    random, found = np.random.default_rng(8), []
    for number in range(18):
        start, length = int(random.integers(0, 90)), int(random.integers(1, 60))
        params = SamplingParams(
            max_tokens=int(random.integers(1, 24)),
            temperature=0.9 * (number % 3 == 0),
            top_p=0.9 if number % 2 else 1.0,
            repetition_penalty=1.0 + 0.2 * (number % 4 == 0),
            seed=number,
            stop=("e", "qz") if number % 5 == 0 else (),
            logit_bias={TOKENS[0]: 50.0} if number % 6 == 1 else {},  # repeats itself: drafts
            ignore_eos=number % 2 == 0,
        )
        request = Request(
            prompt=TOKENS[:40] * bool(number % 2) + TOKENS[start : start + length],
            params=params,
            speculate=number % 2 == 1,
            constraint=Alphabet(int(random.integers(1, 9))) if number % 4 == 2 else None,
        )
        found.append((request, number + 3 if number % 7 == 6 else None))
    return found


def served(session: OrtSession) -> tuple[dict[int, list[Any]], dict[int, tuple[str, Any]]]:
    """Every request's events and how it ended, with its usage."""
    tokenizer: Any = Letters()
    scheduler = Scheduler(session, tokenizer, prefill_tokens=16)
    outputs, steps, cancelled = [], 0, {}
    for request, cancel in requests():
        number = scheduler.submit(request)
        if cancel is not None:
            cancelled[number] = cancel
        outputs += scheduler.step()
        steps += 1
    while not scheduler.idle:
        outputs += scheduler.step()
        steps += 1
        for number in [n for n, at in cancelled.items() if at <= steps]:
            del cancelled[number]
            if output := scheduler.cancel(number):
                outputs.append(output)
    events: dict[int, list[Any]] = {}
    for output in outputs:
        if output.event:
            events.setdefault(output.request_id, []).append(output.event)
    found = {number: (ended.reason, ended.usage) for number, ended in ends(outputs).items()}
    return events, found


@pytest.fixture(params=["at the latest", "in a thread"])
def either(request: pytest.FixtureRequest, session: Overlapping, tiny: Any) -> Iterator[OrtSession]:
    """A session that runs a step when it is collected, and one that does from its launch on."""
    if request.param == "at the latest":
        yield session
        return
    with OrtSession.open(tiny.bundle, max_batch=3, max_seq_len=LENGTH, threads=1) as threaded:
        assert threaded.overlaps
        yield threaded


def test_answers_are_the_same_with_and_without_overlap(tiny: Any, either: OrtSession) -> None:
    session = either
    with OrtSession.open(tiny.bundle, max_batch=3, max_seq_len=LENGTH, threads=1) as plain:
        plain.overlaps = False
        expected, expected_ends = served(plain)
    events, found = served(session)
    assert found.keys() == expected_ends.keys()
    reasons = {reason for reason, _ in found.values()}
    assert reasons >= {"stop", "length"}
    for number, (reason, usage) in found.items():
        if "cancelled" in (reason, expected_ends[number][0]):  # at another token
            shorter = min(len(events.get(number, [])), len(expected.get(number, [])))
            assert events.get(number, [])[:shorter] == expected.get(number, [])[:shorter]
            continue
        assert reason == expected_ends[number][0]
        assert events[number] == expected[number]
        assert usage.completion_tokens == len(events[number])


def test_the_next_step_runs_before_the_last_ones_tokens_are_told(session: Overlapping) -> None:
    scheduler = Scheduler(session)
    scheduler.submit(Request(prompt=TOKENS[:9], params=GREEDY, speculate=False))
    for steps in range(1, 12):
        outputs = scheduler.step()
        assert session.num_steps == steps and session.launched is not None
        assert len(answers(outputs)[0]) == 1
    assert not scheduler.idle
    scheduler.step()  # max_tokens is known with the token: nothing was launched behind it
    assert scheduler.idle and session.launched is None and session.num_steps == 12


def test_an_answer_that_its_text_ends_costs_one_token_that_nobody_sees(
    session: Overlapping, runner: Runner
) -> None:
    third = alone(runner, TOKENS[:9])[2]
    params = SamplingParams(max_tokens=50, stop=(chr(97 + third % 26),), ignore_eos=True)
    tokenizer: Any = Letters()
    scheduler = Scheduler(session, tokenizer)
    scheduler.submit(Request(prompt=TOKENS[:9], params=params, speculate=False))
    outputs = drain(scheduler)
    told = answers(outputs)[0]
    assert told == alone(runner, TOKENS[:9])[: len(told)] and len(told) <= 3
    assert session.num_steps == len(told) + 1
    assert ends(outputs)[0].usage.completion_tokens == len(told)
    again = scheduler.submit(Request(prompt=TOKENS[:9] + told, params=GREEDY))
    assert answers(drain(scheduler))[again] == alone(runner, TOKENS[:9] + told)


def test_a_deadline_that_passes_while_a_step_runs_drops_its_token(session: Overlapping) -> None:
    now = [0.0]
    scheduler = Scheduler(session, clock=lambda: now[0])
    late = scheduler.submit(Request(prompt=TOKENS[:9], params=GREEDY, deadline=1.0))
    first = scheduler.step()
    now[0] = 2.0
    outputs = scheduler.step()
    assert ends(outputs)[late].reason == "deadline" and not answers(outputs)
    assert len(answers(first)[late]) == 1 and scheduler.idle


def test_a_failing_step_ends_those_in_it_and_what_a_cancelled_row_held_is_not_trusted(
    session: Overlapping, runner: Runner
) -> None:
    scheduler = Scheduler(session)
    hit = scheduler.submit(Request(prompt=TOKENS[:50], params=GREEDY, speculate=False))
    gone = scheduler.submit(Request(prompt=TOKENS[100:150], params=GREEDY, speculate=False))
    outputs = scheduler.step()
    session.fail_at = session.num_steps + 1
    scheduler.cancel(gone)  # its step runs
    outputs += scheduler.step()
    assert ends(outputs)[hit].reason == "error"
    for start in (0, 100):
        again = scheduler.submit(Request(prompt=TOKENS[start : start + 50], params=GREEDY))
        outputs = drain(scheduler)
        assert ends(outputs)[again].usage.cached_tokens == 0
        assert answers(outputs)[again] == alone(runner, TOKENS[start : start + 50])


def test_a_fault_found_while_the_next_step_runs_leaves_nothing_wrong_in_the_row(
    session: Overlapping, runner: Runner
) -> None:
    class Faulty(Alphabet):
        def accept(self, token_id: int) -> None:
            raise ZeroDivisionError("planted")

    scheduler = Scheduler(session)
    bad = scheduler.submit(Request(prompt=TOKENS[:50], params=GREEDY, constraint=Faulty(9)))
    outputs = scheduler.step()
    assert ends(outputs)[bad].reason == "error" and session.launched is not None
    drain(scheduler)
    assert scheduler.num_held_tokens == 0  # the dropped token does not stand for a beginning
    again = scheduler.submit(Request(prompt=TOKENS[:50], params=GREEDY))
    assert answers(drain(scheduler))[again] == alone(runner, TOKENS[:50])
