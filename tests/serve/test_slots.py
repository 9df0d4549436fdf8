"""Which rows are given out, and what a row near the context's end costs the others."""

from collections.abc import Iterator
from typing import Any

import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.serve import Request, Scheduler

from .test_scheduler import GREEDY, TOKENS, Watched, alone, answers, drain

pytestmark = pytest.mark.model
ROWS, LENGTH = 12, 64


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


def test_rows_near_the_contexts_end_share_the_steps_of_all(
    session: Watched, runner: Runner
) -> None:
    """A row of 64 tokens has no room for padding: it runs its own last token once more."""
    scheduler = Scheduler(session)
    full = scheduler.submit(Request(prompt=TOKENS[:62], params=GREEDY, speculate=False))
    found = answers(drain(scheduler))[full]
    assert len(found) == 2 and scheduler.num_held_tokens == 63
    scheduler.submit(Request(prompt=[*TOKENS[:62], found[0]], params=GREEDY, speculate=False))
    drain(scheduler)
    others = [TOKENS[start : start + 9] for start in range(100, 170, 10)]
    longest = SamplingParams(max_tokens=60, ignore_eos=True)
    for prompt in (*others, TOKENS[200:255]):
        scheduler.submit(Request(prompt=prompt, params=longest, speculate=False))
    scheduler.step()
    session.steps.clear()
    outputs = scheduler.step()
    assert len(session.steps) == 1 and len(answers(outputs)) == 8
    outputs += drain(scheduler)
    assert all(tokens == 1 for _, tokens in session.steps)
    assert len(session.steps) == LENGTH - 10  # the longest answer; nobody cost a step of its own
    for number, prompt in enumerate(others, 2):
        assert answers(outputs)[number] == alone(runner, prompt, longest)[1:]
    again = scheduler.submit(Request(prompt=[*TOKENS[:62], found[0]], params=GREEDY))
    assert answers(drain(scheduler))[again] == found[1:]  # from the row that ran along


def test_low_rows_are_given_out_first(session: Watched) -> None:
    """Two streams after twelve: a step of the lowest rows, not of all that were used."""
    scheduler = Scheduler(session)
    for start in range(0, 10 * ROWS, 10):
        scheduler.submit(Request(prompt=TOKENS[start : start + 9], params=GREEDY, speculate=False))
    drain(scheduler)
    for start in range(0, 60, 10):
        for at in (start, start + 5):
            prompt = TOKENS[300 + at : 304 + at]
            scheduler.submit(Request(prompt=prompt, params=GREEDY, speculate=False))
        session.steps.clear()
        drain(scheduler)
        assert max(rows for rows, _ in session.steps) <= 8
