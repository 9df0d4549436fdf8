"""Continuous batching: answers are those of a request alone, and nobody waits long."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.session import Logits, Tokens
from nemo_trt.errors import CapacityError, FaultError, MachineError, QueueFullError, RequestError
from nemo_trt.serve import Ended, Output, Request, Scheduler

pytestmark = pytest.mark.model

RANDOM = np.random.default_rng(11)
TOKENS: list[int] = RANDOM.integers(0, 512, 400).tolist()
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
ROWS, LENGTH = 3, 128


class Watched(OrtSession):
    """Notes every step, and fails where it is told to."""

    overlaps = False  # a step of the scheduler is one of the session, to count them
    steps: list[tuple[int, ...]]
    failure: Exception | None = None
    poison: int | None = None
    cost: Callable[[int, int], float] | None = None

    def _step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        self.steps.append(input_ids.shape)
        if self.failure:
            raise self.failure
        logits = super()._step(input_ids, write_indices, logit_indices, first_row)
        if self.poison is not None and first_row <= self.poison < first_row + len(input_ids):
            logits[self.poison - first_row] = np.nan
        return logits

    def step_cost(self, rows: int, new_tokens: int) -> float:
        return self.cost(rows, new_tokens) if self.cost else super().step_cost(rows, new_tokens)


@pytest.fixture
def session(tiny: Any) -> Iterator[Watched]:
    session = Watched.open(tiny.bundle, max_batch=ROWS, max_seq_len=LENGTH, threads=1)
    session.steps = []
    with session:
        yield session


@pytest.fixture(scope="module")
def runner(tiny: Any) -> Iterator[Runner]:
    with Runner.open(tiny.bundle, max_seq_len=LENGTH, threads=1) as runner:
        yield runner


def alone(runner: Runner, prompt: Sequence[int], params: SamplingParams = GREEDY) -> list[int]:
    """What the Runner answers, from an empty row."""
    runner.rewind(0)
    return [event.token_id for event in runner.generate([prompt], [params])]


def answers(outputs: Sequence[Output]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for output in outputs:
        if output.event:
            found.setdefault(output.request_id, []).append(output.event.token_id)
    return found


def ends(outputs: Sequence[Output]) -> dict[int, Ended]:
    return {output.request_id: output.ended for output in outputs if output.ended}


def drain(scheduler: Scheduler) -> list[Output]:
    outputs = []
    while not scheduler.idle:
        outputs.extend(scheduler.step())
    return outputs


@pytest.mark.parametrize("prefill_tokens", [1, 7, 512])
@pytest.mark.parametrize("speculate", [False, True])
def test_answers_are_those_of_each_request_alone(
    session: Watched, runner: Runner, prefill_tokens: int, speculate: bool
) -> None:
    """Requests of every kind arrive while others run, more of them than rows."""
    random = np.random.default_rng(prefill_tokens)
    scheduler = Scheduler(session, prefill_tokens=prefill_tokens)
    requests, outputs = {}, []
    for number in range(12):
        start, length = int(random.integers(0, 90)), int(random.integers(1, 100))
        prompt = TOKENS[:40] * bool(number % 2) + TOKENS[start : start + length]
        params = SamplingParams(
            max_tokens=int(random.integers(1, 16)),
            temperature=0.8 * (number % 3 == 0),
            top_p=0.9,
            repetition_penalty=1.0 + 0.2 * (number % 4 == 0),
            seed=number,
            ignore_eos=True,
        )
        prompt = prompt[: LENGTH - 2]
        request = Request(prompt=prompt, params=params, speculate=speculate)
        requests[scheduler.submit(request)] = request
        for _ in range(int(random.integers(0, 4))):
            outputs.extend(scheduler.step())
    outputs.extend(drain(scheduler))
    for request_id, found in answers(outputs).items():
        asked = requests[request_id]
        assert found == alone(runner, asked.prompt, asked.params)
        usage = ends(outputs)[request_id].usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(asked.prompt), len(found))
    assert {ended.reason for ended in ends(outputs).values()} == {"length"}
    assert set(ends(outputs)) == set(requests)
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_a_long_prompt_does_not_stall_who_decodes(session: Watched) -> None:
    scheduler = Scheduler(session, prefill_tokens=8)
    first = scheduler.submit(Request(prompt=TOKENS[:4], params=GREEDY, speculate=False))
    scheduler.step()
    for start in (10, 200):
        scheduler.submit(Request(prompt=TOKENS[start : start + 100], params=GREEDY))
    while first not in ends(outputs := scheduler.step()):
        assert len(answers(outputs)[first]) == 1  # a token in each step, whoever else is there
        *_, prefilled = session.steps, [s for s in session.steps if s[1] > 1]
        assert all(rows * tokens <= 8 for rows, tokens in prefilled)


def test_prompts_share_the_budget_evenly(session: Watched) -> None:
    """A short prompt is not behind a long one that came first."""
    scheduler = Scheduler(session, prefill_tokens=16)
    long = scheduler.submit(Request(prompt=TOKENS[:100], params=GREEDY))
    short = scheduler.submit(Request(prompt=TOKENS[200:208], params=GREEDY))
    assert list(answers(scheduler.step())) == [short]
    order = [output.request_id for output in drain(scheduler) if output.ended]
    assert order == [short, long]


def test_admission_is_in_the_order_of_arrival(session: Watched) -> None:
    scheduler = Scheduler(session)
    ids = [scheduler.submit(Request(prompt=TOKENS[n : n + 5], params=GREEDY)) for n in range(7)]
    firsts = list(answers(drain(scheduler)))
    assert firsts == ids


def test_cancelling_frees_the_row_for_the_next_step(session: Watched) -> None:
    scheduler = Scheduler(session, prefill_tokens=4)
    ids = [scheduler.submit(Request(prompt=TOKENS[n : n + 50])) for n in range(ROWS + 2)]
    scheduler.step()
    assert (scheduler.num_running, scheduler.num_waiting) == (ROWS, 2)
    for request_id in (ids[0], ids[-1]):  # one prefills, one waits
        output = scheduler.cancel(request_id)
        assert output and output.ended and output.ended.reason == "cancelled"
        assert scheduler.cancel(request_id) is None
    scheduler.step()
    assert (scheduler.num_running, scheduler.num_waiting) == (ROWS, 0)


def test_a_deadline_ends_who_runs_and_who_waits(session: Watched) -> None:
    now = [0.0]
    scheduler = Scheduler(session, clock=lambda: now[0])
    params = SamplingParams(max_tokens=50, ignore_eos=True)
    for _ in range(ROWS + 1):
        scheduler.submit(Request(prompt=TOKENS[:5], params=params, deadline=1.0))
    for now[0] in (0.0, 0.99):
        assert not ends(scheduler.step())
    now[0] = 1.0
    assert [ended.reason for ended in ends(scheduler.step()).values()] == ["deadline"] * 4
    assert scheduler.idle


def test_a_full_queue_refuses(session: Watched) -> None:
    scheduler = Scheduler(session, max_queue=2)
    for _ in range(ROWS + 2):
        scheduler.submit(Request(prompt=[1], params=GREEDY))
    with pytest.raises(QueueFullError, match="waiting already"):
        scheduler.submit(Request(prompt=[1], params=GREEDY))
    assert len(ends(drain(scheduler))) == ROWS + 2


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(prompt=[]), RequestError),
        (Request(prompt=[512]), RequestError),
        (Request(prompt=[-1]), RequestError),
        (Request(prompt=[1] * LENGTH), CapacityError),
        (Request(prompt=[1], params=SamplingParams(logit_bias={512: 1.0})), RequestError),
    ],
)
def test_what_cannot_run_is_refused_at_once(
    session: Watched, request_: Request, error: type[Exception]
) -> None:
    scheduler = Scheduler(session)
    with pytest.raises(error):
        scheduler.submit(request_)
    assert scheduler.idle


def test_a_row_that_is_full_ends(session: Watched, runner: Runner) -> None:
    scheduler = Scheduler(session)
    params = SamplingParams(max_tokens=50, ignore_eos=True)
    scheduler.submit(Request(prompt=TOKENS[: LENGTH - 3], params=params))
    outputs = drain(scheduler)
    assert answers(outputs)[0] == alone(runner, TOKENS[: LENGTH - 3], params)
    assert ends(outputs)[0].reason == "length" and len(answers(outputs)[0]) == 3


def test_a_failing_session_ends_who_was_in_the_step_and_the_service_goes_on(
    session: Watched, runner: Runner
) -> None:
    scheduler = Scheduler(session)
    first = scheduler.submit(Request(prompt=TOKENS[:50], params=GREEDY))
    scheduler.step()
    session.failure = MachineError("out of memory")
    assert ends(scheduler.step())[first].error is session.failure
    session.failure = None
    again = scheduler.submit(Request(prompt=TOKENS[:50], params=GREEDY))
    outputs = drain(scheduler)
    assert answers(outputs)[again] == alone(runner, TOKENS[:50])
    assert ends(outputs)[again].usage.cached_tokens == 0  # what the row holds was not trusted


def test_logits_that_are_not_finite_end_their_request_alone(
    session: Watched, runner: Runner
) -> None:
    scheduler = Scheduler(session)
    for start in (0, 50):
        scheduler.submit(Request(prompt=TOKENS[start : start + 20], params=GREEDY))
    found = scheduler.step()
    session.poison = 1
    found += scheduler.step()
    session.poison = None
    found += drain(scheduler)
    assert [ends(found)[n].reason for n in (0, 1)] == ["length", "error"]
    assert answers(found)[0] == alone(runner, TOKENS[:20])


@pytest.mark.parametrize("others", [True, False])
def test_a_fault_in_one_request_is_its_own_and_the_others_go_on(
    others: bool, session: Watched, runner: Runner
) -> None:
    class Faulty:
        finished = False

        def allowed(self) -> Any:
            raise ZeroDivisionError("planted")

        def accept(self, token_id: int) -> None: ...

    scheduler = Scheduler(session)
    bad = scheduler.submit(Request(prompt=TOKENS[:9], params=GREEDY, constraint=Faulty()))
    good = scheduler.submit(Request(prompt=TOKENS[20:29], params=GREEDY)) if others else None
    outputs = drain(scheduler)
    error = ends(outputs)[bad].error
    assert isinstance(error, FaultError) and isinstance(error.__cause__, ZeroDivisionError)
    assert answers(outputs) == ({good: alone(runner, TOKENS[20:29])} if others else {})
    again = scheduler.submit(Request(prompt=TOKENS[:9], params=GREEDY))
    assert answers(drain(scheduler)) == {again: alone(runner, TOKENS[:9])}


def test_a_row_that_met_a_nan_is_cleared_before_the_next_request(
    session: Watched, runner: Runner
) -> None:
    """A rewind keeps the bytes: masked attention would multiply the NaN by zero, which is NaN."""
    scheduler = Scheduler(session, prefill_tokens=512)
    bad = scheduler.submit(Request(prompt=TOKENS[:60], params=GREEDY))
    scheduler.step()
    for row in range(ROWS):
        session.write_cache(0, "value", row, 30, np.full((1, 1, 1), np.nan, np.float32))
    assert ends(drain(scheduler))[bad].reason == "error"
    for row in range(1, ROWS):  # the test's own NaN, in rows that no request had
        scheduler._rows.clear(row)
    again = scheduler.submit(Request(prompt=TOKENS[100:104], params=GREEDY))
    assert answers(drain(scheduler))[again] == alone(runner, TOKENS[100:104])
    session.bind(LENGTH)
    for row in range(ROWS):
        assert np.isfinite(session.read_cache(0, "value", row, 0, LENGTH)).all()


def test_a_failing_step_ends_its_own_rows_and_not_those_of_the_steps_around_it(
    session: Watched, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(session, prefill_tokens=60)
    first, middle, last = (
        scheduler.submit(Request(prompt=TOKENS[start : start + 50], params=GREEDY))
        for start in (0, 100, 200)
    )
    scheduler.step()
    scheduler.cancel(middle)  # rows 0 and 2 with a gap between them: a step each
    steps, working = len(session.steps), Watched._step

    def second_fails(self: Watched, *arguments: Any) -> Logits:
        if len(self.steps) > steps:
            raise MachineError("planted")
        return working(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Watched, "_step", second_fails)
        outputs = scheduler.step()
    assert {number: ended.reason for number, ended in ends(outputs).items()} == {last: "error"}
    assert answers(outputs + drain(scheduler)) == {first: alone(runner, TOKENS[:50])}


def test_a_request_for_many_answers_lets_others_go_first(session: Watched) -> None:
    scheduler = Scheduler(session)
    group = object()
    many = [
        scheduler.submit(Request(prompt=TOKENS[n : n + 5], params=GREEDY, group=group))
        for n in range(3 * ROWS)
    ]
    scheduler.step()  # it has every row, since nobody else is there
    others = [scheduler.submit(Request(prompt=TOKENS[n : n + 5], params=GREEDY)) for n in (40, 60)]
    firsts = list(answers(drain(scheduler)))
    ahead = ROWS + 1  # of those that end together, it has one row again before the others have
    assert firsts == [*many[:ahead], *others, *many[ahead:]]


def test_a_group_takes_one_place_in_the_queue(session: Watched) -> None:
    scheduler = Scheduler(session, max_queue=1)
    groups = [object() for _ in range(ROWS + 1)]
    for group in groups:
        for _ in range(4):
            scheduler.submit(Request(prompt=[1], params=GREEDY, group=group))
    for late in (object(), None):
        with pytest.raises(QueueFullError, match=f"^{ROWS + 1} requests"):
            scheduler.submit(Request(prompt=[1], params=GREEDY, group=late))
    scheduler.submit(Request(prompt=[1], params=GREEDY, group=groups[-1]))
    assert len(ends(drain(scheduler))) == 4 * (ROWS + 1) + 1
