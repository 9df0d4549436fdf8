"""A step that is prepared while another one runs: each request gets the answer that it gets alone,
whatever comes, goes, ends or fails in between."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nemo_trt.engines.generation import Generation, TokenEvent
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import BundleError
from nemo_trt.serve import Output, Request, Scheduler

from .remembering import Remembering, answer_of
from .remembering_rows import VOCAB, RememberingRows, logits_of, repeating
from .test_pages import ask, finished, scheduler_of

pytestmark = pytest.mark.unit


class Letters:
    """A tokenizer: each token is a letter."""

    vocab_size, bos_id, eos_ids, tool_calls_id = VOCAB, 1, (), None

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        return bytes([97 + token_id % 26])


class Rests:
    """A grammar: tokens of one rest of 3 after the other, `length` of them."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def finished(self) -> bool:
        return self._left == 0

    def allowed(self) -> NDArray[np.bool_]:
        return np.arange(VOCAB) % 3 == self._left % 3

    def accept(self, token_id: int) -> None:
        assert self.allowed()[token_id] and self._left
        self._left -= 1


def constraint_of(request: Request) -> Rests | None:
    """A new one for each run of a request."""
    return None if request.constraint is None else Rests(request.params.max_tokens // 2 + 1)


def alone(request: Request, session: RememberingRows) -> tuple[list[TokenEvent], str]:
    """What a request gets with nobody beside it, and how it ends."""
    tokens, events, tokenizer = list(request.prompt), [], Letters()
    generation = Generation(
        0, tokens[:], request.params, session.config, tokenizer, constraint_of(request)
    )
    while True:
        try:
            last = len(tokens) + 1 >= session.max_seq_len
            events.append(generation.next(logits_of(tokens), last=last))
        except BundleError:
            return events, "error"
        tokens.append(events[-1].token_id)
        if reason := events[-1].finish_reason:
            return events, reason


def random_request(dice: random.Random, length: int) -> Request:
    stem = [dice.randint(0, 1)] * dice.randint(0, length // 2)
    tail = [dice.randint(0, 2) for _ in range(dice.randint(1, length // 3))]
    max_tokens = dice.randint(1, length)
    return Request(
        prompt=(stem + tail)[: length - 1],
        params=SamplingParams(
            max_tokens=max_tokens,
            temperature=dice.choice((0.0, 0.7, 1.3)),
            top_p=dice.choice((1.0, 0.9)),
            seed=dice.randint(0, 99),
            repetition_penalty=dice.choice((1.0, 1.0, 1.2)),
            frequency_penalty=dice.choice((0.0, 0.0, 0.4)),
            min_tokens=dice.choice((0, 0, min(3, max_tokens))),
            logprobs=dice.choice((None, None, 2)),
            stop=(dice.choice("abcfgh"),) if dice.random() < 0.2 else (),
            stop_token_ids=(dice.choice((0, 1, 5, 6)),) if dice.random() < 0.3 else (),
        ),
        speculate=dice.random() < 0.3,
        deadline=dice.choice((None, None, None, dice.randint(2, 30))),
        constraint=Rests(max_tokens // 2 + 1) if dice.random() < 0.15 else None,
    )


def sound(scheduler: Any) -> None:
    """A row that is given up while a step runs is nobody's before the step has ended."""
    flight, running = scheduler._flight, scheduler._places.running
    for row, live in flight.lives.items() if flight else ():
        assert running.get(row) in (None, live)


def random_schedule(seed: int) -> set[str]:
    """Requests of all kinds come, go and fail; return how they ended."""
    dice = random.Random(seed)
    length, now = dice.randint(12, 40), [0.0]
    session: Any = RememberingRows(rows=dice.randint(1, 5), length=length, overlaps=seed % 8 != 0)
    tokenizer: Any = Letters()
    prefill = dice.choice((4, 16, 64))
    scheduler = Scheduler(session, tokenizer, prefill_tokens=prefill, clock=lambda: now[0])
    asked: dict[int, Request] = {}
    outputs: list[Output] = []
    for _ in range(dice.randint(2, 7)):
        request = random_request(dice, length)
        asked[scheduler.submit(request)] = request
        for _ in range(dice.choice((0, 1, 3, 9))):
            session.failures += dice.random() < 0.01
            now[0] += 1
            outputs += scheduler.step()
            sound(scheduler)
        if dice.random() < 0.2:
            output = scheduler.cancel(dice.choice(list(asked)))
            outputs += [output] if output else []
    while not scheduler.idle:
        now[0] += 1
        assert now[0] < 1000, "the scheduler must come to an end"
        outputs += scheduler.step()
        sound(scheduler)
    ends = {output.request_id: output.ended for output in outputs if output.ended}
    assert ends.keys() == asked.keys()
    for number, request in asked.items():
        events = [one.event for one in outputs if one.request_id == number and one.event]
        assert [one.ended for one in outputs if one.request_id == number][-1], "nothing follows"
        expected, reason = alone(request, session)
        found = ends[number].reason
        if found in ("length", "stop"):
            assert found == reason and len(events) == len(expected)
        same(events, expected[: len(events)])
        if found == "error" and isinstance(ends[number].error, BundleError):
            assert (len(events), found) == (len(expected), reason)
        assert ends[number].usage.completion_tokens == len(events)
    return {ended.reason for ended in ends.values()}


def same(events: Sequence[TokenEvent], expected: Sequence[TokenEvent]) -> None:
    for event, other in zip(events, expected, strict=True):
        assert (event.token_id, event.text) == (other.token_id, other.text)
        assert (event.finish_reason, event.stop) == (other.finish_reason, other.stop)
        assert event.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in event.top_logprobs] == [t for t, _ in other.top_logprobs]


def test_random_schedules_sample_what_each_request_gets_alone() -> None:
    reasons: set[str] = set()
    for seed in range(100):
        reasons |= random_schedule(seed)
    assert reasons == {"length", "stop", "cancelled", "deadline", "error"}


def test_a_decode_step_is_launched_before_anything_is_done_with_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Remembering(rows=3, length=64, pages=24, page_tokens=8, overlaps=True)
    scheduler, done = scheduler_of(session), []
    for owner, name in ((session, "launch"), (session, "collect"), (Generation, "take")):
        original = getattr(owner, name)

        def noted(*args: Any, name: str = name, original: Any = original, **more: Any) -> Any:
            done.append(name)
            return original(*args, **more)

        monkeypatch.setattr(owner, name, noted)
    short, *others = [
        scheduler.submit(ask([number], 30 - 20 * (not number), speculate=False))
        for number in range(3)
    ]
    outputs = scheduler.step() + scheduler.step()
    for _ in range(7):  # from page to page
        done.clear()
        outputs += scheduler.step()
        assert done == ["collect", "launch", "take", "take", "take"]
    outputs += scheduler.step()  # one answer ends here, and the step behind has two rows
    assert ended_by(outputs) == {short} and session.launched is not None
    assert session.steps[-1] == (2, 1)
    found = finished(scheduler, outputs)
    assert [found[number][0] for number in (short, *others)] == [
        answer_of([number], 30 - 20 * (not number), 64) for number in range(3)
    ]


def test_a_prompt_that_arrives_is_run_while_others_decode() -> None:
    session = Remembering(rows=3, length=64, pages=24, page_tokens=8, overlaps=True)
    scheduler = scheduler_of(session)
    scheduler.submit(ask([0], 60, speculate=False))
    for _ in range(4):
        scheduler.step()
    late = scheduler.submit(ask([1, 1], 9))
    outputs = scheduler.step() + scheduler.step()
    assert late in {output.request_id for output in outputs}


def ended_by(outputs: list[Output]) -> set[int]:
    return {output.request_id for output in outputs if output.ended}


def test_an_answer_that_ends_between_others_is_no_longer_written_behind() -> None:
    session: Any = RememberingRows(rows=3, length=64, model=repeating)
    scheduler = Scheduler(session)
    for prompt, max_tokens in (([1], 40), ([2] * 20, 6), ([3], 40)):
        scheduler.submit(ask(prompt, max_tokens, speculate=False))
    outputs: list[Output] = []
    while not scheduler.idle:  # the row between them is the longest, and its cache is full
        outputs += scheduler.step()
    assert [one.ended.reason for one in outputs if one.ended] == ["length"] * 3
    assert sum(one.event is not None for one in outputs) == 86


def test_who_runs_long_drafts_apart_from_others_has_its_turn() -> None:
    session: Any = RememberingRows(rows=3, length=256, model=repeating, cost=1e-4)
    scheduler = Scheduler(session)
    scheduler.submit(ask([1], 90, speculate=False))
    scheduler.submit(ask([2], 2, speculate=False))
    drafting = scheduler.submit(ask([3] * 9, 100))
    ended: list[int] = []
    for _ in range(20):
        ended += [one.request_id for one in scheduler.step() if one.ended]
    assert drafting in ended


def counting(tokens: Sequence[int]) -> NDArray[np.float32]:
    return repeating([tokens[-1] + 1])


def test_a_row_whose_answer_ended_is_nobodys_while_its_last_step_runs() -> None:
    session: Any = RememberingRows(rows=2, length=64, model=counting)
    session.bind(64)
    scheduler: Any = Scheduler(session)
    scheduler.submit(ask([0], 40, speculate=False))
    scheduler.submit(ask([0], 40, stop_token_ids=(6,), speculate=False))
    waiting = scheduler.submit(ask([0, 1, 2, 3, 4, 5, 6, 7], 9))
    outputs: list[Output] = []
    while not any(one.ended for one in outputs):
        outputs += scheduler.step()
    assert session.launched is not None and session.steps[-1] == (2, 1)
    assert (scheduler.num_waiting, scheduler.num_running) == (1, 1)
    while not scheduler.idle:
        outputs += scheduler.step()
        sound(scheduler)
    tokens = [one.event.token_id for one in outputs if one.request_id == waiting and one.event]
    assert tokens == list(range(8, 17))


def test_nothing_is_launched_behind_the_last_end_token() -> None:
    session: Any = RememberingRows(rows=1, length=64, model=counting)
    session.bind(64)
    scheduler = Scheduler(session)
    scheduler.submit(ask([0], 20, stop_token_ids=(6,), speculate=False))
    tokens = [one.event.token_id for _ in range(6) for one in scheduler.step() if one.event]
    assert tokens == [1, 2, 3, 4, 5, 6]
    assert scheduler.idle and session.launched is None and len(session.steps) == 6


def test_a_row_that_the_due_token_fills_runs_no_step_more() -> None:
    """Its last token is drawn, and never stored: a step with it would be in vain."""
    session: Any = RememberingRows(rows=1, length=12)
    session.bind(12)  # a cache that must grow first prepares nothing
    scheduler = Scheduler(session)
    number = scheduler.submit(ask([1, 2, 3], 32, speculate=False))
    tokens, _ = finished(scheduler, look=False)[number]
    assert len(tokens) == 12 - 3
    assert len(session.steps) == 1 + (len(tokens) - 1)  # the prompt, then each token but the last
