"""Pages on the CPU: the same scheduling over a real model, whose answers are those of one row."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.ort_pages import PagedOrtSession
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import CapacityError
from nemo_trt.serve import Request, Scheduler

from .test_scheduler import GREEDY, LENGTH, TOKENS, alone, answers, drain, ends, runner

pytestmark = pytest.mark.model
__all__ = ["runner"]
ROWS, PAGE, PAGES = 4, 16, 11  # LENGTH tokens of one row take 8


@pytest.fixture
def session(tiny: Any) -> Iterator[PagedOrtSession]:
    """With pages full of NaN: whatever is read that no row wrote ends its request."""
    with PagedOrtSession.open(
        tiny.bundle, max_batch=ROWS, max_seq_len=LENGTH, threads=1, page_tokens=PAGE,
        num_pages=PAGES,
    ) as session:  # fmt: skip
        for pool in session._pools.values():
            pool[...] = np.nan
        yield session


@pytest.mark.parametrize("prefill_tokens", [7, 512])
def test_answers_are_those_of_each_request_alone(
    session: PagedOrtSession, runner: Runner, prefill_tokens: int
) -> None:
    """Sampled and greedy, drafted or not, and more than there are pages for."""
    random = np.random.default_rng(prefill_tokens)
    scheduler = Scheduler(session, prefill_tokens=prefill_tokens)
    requests, outputs = {}, []
    for number in range(12):
        start, length = int(random.integers(0, 90)), int(random.integers(1, 70))
        prompt = TOKENS[:40] * bool(number % 2) + TOKENS[start : start + length]
        params = SamplingParams(
            max_tokens=int(random.integers(1, 50)),
            temperature=0.8 * (number % 3 == 0),
            top_p=0.9,
            repetition_penalty=1.0 + 0.2 * (number % 4 == 0),
            seed=number,
            logit_bias={TOKENS[0]: 50.0} if number % 5 == 1 else {},  # repeats itself: drafts
            ignore_eos=True,
        )
        request = Request(prompt=prompt, params=params, speculate=bool(number % 2))
        requests[scheduler.submit(request)] = request
        for _ in range(int(random.integers(0, 4))):
            outputs.extend(scheduler.step())
    outputs.extend(drain(scheduler))
    assert any(ended.usage.preemptions for ended in ends(outputs).values())
    for number, request in requests.items():
        assert answers(outputs)[number] == alone(runner, request.prompt, request.params)
        assert ends(outputs)[number].reason == "length"
    assert any(ended.usage.cached_tokens >= 40 for ended in ends(outputs).values())


def test_answers_of_one_prompt_share_its_pages(session: PagedOrtSession, runner: Runner) -> None:
    scheduler = Scheduler(session)
    prompt = TOKENS[:108]  # six pages and most of one; four rows of their own would need 32
    group = object()
    numbers = [
        scheduler.submit(Request(prompt=prompt, params=GREEDY, group=group)) for _ in range(ROWS)
    ]
    outputs = drain(scheduler)
    assert all(answers(outputs)[number] == alone(runner, prompt) for number in numbers)
    assert [ends(outputs)[number].usage.cached_tokens for number in numbers] == [0, 107, 107, 107]
    assert not any(ended.usage.preemptions for ended in ends(outputs).values())


def test_what_a_row_met_that_was_not_finite_reaches_nobody_else(
    session: PagedOrtSession, runner: Runner
) -> None:
    scheduler = Scheduler(session)
    bad = scheduler.submit(Request(prompt=TOKENS[:60], params=GREEDY))
    scheduler.step()
    for pool in session._pools.values():
        pool[...] = np.nan
    assert ends(drain(scheduler))[bad].reason == "error"
    again = scheduler.submit(Request(prompt=TOKENS[:20], params=GREEDY))
    outputs = drain(scheduler)
    assert answers(outputs)[again] == alone(runner, TOKENS[:20])
    assert ends(outputs)[again].usage.cached_tokens == 0


def test_a_runner_rewinds_and_goes_on(session: PagedOrtSession, runner: Runner) -> None:
    with Runner(session) as paged:
        assert alone(paged, TOKENS[:30]) == alone(runner, TOKENS[:30])
        paged.rewind(0, 20)
        runner.rewind(0, 20)
        for row_tokens in ({0: TOKENS[50:65]}, {0: TOKENS[70:71]}):
            np.testing.assert_allclose(
                paged.prefill(row_tokens), runner.prefill(row_tokens), rtol=1e-4, atol=1e-5
            )
        assert alone(paged, TOKENS[:30]) == alone(runner, TOKENS[:30])


def test_who_says_nothing_of_pages_has_rows(tiny: Any) -> None:
    steps = [(np.array([TOKENS[:9], TOKENS[20:29]]), [0, 0]), (np.array([[5], [6]]), [9, 7])]
    found = []
    for kind in (OrtSession, PagedOrtSession):
        with kind.open(tiny.bundle, max_batch=3, max_seq_len=40, threads=1) as session:
            session.bind(40)
            logits = [
                session.step(ids, np.array(starts), np.zeros((2, 1), np.int64), 1).copy()
                for ids, starts in steps
            ]
            session.copy_cache(2, 0, 8)
            session.write_cache(1, "key", 0, 3, session.read_cache(1, "key", 1, 3, 5))
            blocks = [session.read_cache(1, "key", row, 2, 8) for row in range(3)]
            found.append([*logits, *blocks])
    for rows, pages in zip(*found, strict=True):
        np.testing.assert_allclose(rows, pages, rtol=1e-5, atol=1e-6)


def test_rows_that_do_not_fit_the_pages_are_refused(session: PagedOrtSession) -> None:
    session.bind(LENGTH)
    with pytest.raises(CapacityError, match="4 rows of 50 tokens must have 16 pages, got 11"):
        session.read_cache(0, "key", 0, 0, 50)
