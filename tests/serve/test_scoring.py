"""Scores of a prompt's tokens are those of one pass over it, however it is cut and whoever runs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.rows import Rows
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import BundleError
from nemo_trt.serve import Request, Scheduler
from nemo_trt.serve.scoring import SCORED_TOKENS, PromptScores

pytestmark = pytest.mark.model

PROMPT = [(7 * at + at**2) % 500 for at in range(2 * SCORED_TOKENS + 9)]


@pytest.fixture(scope="module")
def runner(tiny: Any) -> Iterator[Runner]:
    with Runner.open(tiny.bundle, max_batch=2, max_seq_len=256) as runner:
        yield runner


@pytest.fixture(scope="module")
def expected(runner: Runner) -> Any:
    """(S, V) natural logarithms, from one pass."""
    rows = Rows(runner.session)
    ((_, logits),) = rows.append({0: PROMPT}, num_logits=len(PROMPT))
    wide = np.array(logits, np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_scores_are_those_of_one_pass_beside_a_row_that_decodes(
    runner: Runner, expected: Any
) -> None:
    scheduler = Scheduler(runner.session)
    neighbour = scheduler.submit(
        Request(prompt=PROMPT[:20], params=SamplingParams(max_tokens=30), speculate=False)
    )
    scores = PromptScores(3)
    scored = scheduler.submit(
        Request(prompt=PROMPT, params=SamplingParams(max_tokens=2), scores=scores)
    )
    tokens: dict[int, int] = {neighbour: 0, scored: 0}
    while not scheduler.idle:
        for output in scheduler.step():
            tokens[output.request_id] += output.event is not None
    assert tokens == {neighbour: 30, scored: 2}
    assert [score.token_id for score in scores.scores] == PROMPT[1:]
    for at, score in enumerate(scores.scores):
        row = expected[at]
        assert score.logprob == pytest.approx(row[score.token_id], abs=1e-4)
        assert score.top[0][1] == pytest.approx(row.max(), abs=1e-4)
        assert len(score.top) == 3
        assert (score.rank == 1) == (score.top[0][0] == score.token_id)


def test_a_prompt_that_is_cached_is_scored_again_and_may_be_all_there_is(
    runner: Runner, expected: Any
) -> None:
    scheduler = Scheduler(runner.session)
    for _ in range(2):
        scores = PromptScores(0)
        scheduler.submit(Request(prompt=PROMPT, scores=scores, score_only=True))
        ended = []
        while not scheduler.idle:
            ended += [output for output in scheduler.step() if output.ended]
        assert [output.event for output in ended] == [None]
        assert ended[0].ended.reason == "length"
        assert ended[0].ended.usage.completion_tokens == 0
        logprobs = [score.logprob for score in scores.scores]
        right = [expected[at][token] for at, token in enumerate(PROMPT[1:])]
        assert logprobs == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("score_only", [True, False])
def test_scores_that_are_not_finite_end_the_request_and_clear_its_row(
    runner: Runner, score_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.session, "overlaps", False)  # the cache is altered between steps
    scheduler = Scheduler(runner.session)
    runner.session.bind(256)
    for row in (0, 1):
        scheduler._rows.clear(row)
    request = Request(prompt=PROMPT, scores=PromptScores(2), score_only=score_only)
    number = scheduler.submit(request)
    scheduler.step()  # the first piece is there, and is altered behind its scores
    for row in (0, 1):
        block = np.full((1, 1, 1), np.nan, np.float32)
        runner.session.write_cache(0, "value", row, 3, block)
    outputs = []
    while not scheduler.idle:
        outputs += scheduler.step()
    (ended,) = [output.ended for output in outputs if output.ended]
    assert ended.reason == "error" and isinstance(ended.error, BundleError)
    assert outputs[-1].request_id == number
    assert scheduler.num_held_tokens == 0  # nobody takes its prefix
    cleared = [runner.session.read_cache(0, "value", row, 0, 200) for row in (0, 1)]
    assert sum(bool(np.isfinite(block).all()) for block in cleared) == 1  # the other had no request
    for row in (0, 1):
        scheduler._rows.clear(row)


def test_one_scored_prompt_a_step_has_its_turn(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    working = runner.session._step

    def step(input_ids: Any, *rest: Any) -> Any:
        steps.append(input_ids.size)
        return working(input_ids, *rest)

    monkeypatch.setattr(runner.session, "_step", step)
    monkeypatch.setattr(runner.session, "overlaps", False)  # to count the steps of each turn
    scheduler = Scheduler(runner.session)
    for start in (0, 1):
        request = Request(prompt=PROMPT[start:], scores=PromptScores(0), score_only=True)
        scheduler.submit(request)
    order = []
    while not scheduler.idle:
        before = len(steps)
        order += [output.request_id for output in scheduler.step()]
        assert steps[before:] and sum(steps[before:]) <= SCORED_TOKENS
    assert order == [0, 1]
    assert len(steps) == 6  # three each, in turn
    assert [size == SCORED_TOKENS for size in steps] == [True] * 4 + [False] * 2


def test_a_scored_prompt_leaves_the_prefix_that_others_use(runner: Runner) -> None:
    scheduler = Scheduler(runner.session)

    def cached(scores: PromptScores | None) -> int:
        params = SamplingParams(max_tokens=1)
        scheduler.submit(Request(prompt=PROMPT, params=params, scores=scores))
        ended = []
        while not scheduler.idle:
            ended += [output.ended for output in scheduler.step() if output.ended]
        return ended[0].usage.cached_tokens

    for row in (0, 1):
        scheduler._rows.clear(row)
    assert cached(None) == 0
    assert cached(PromptScores(0)) == 0
    held = [len(scheduler._rows.held(row)) for row in (0, 1)]
    assert held == [len(PROMPT)] * 2
    assert cached(None) == len(PROMPT) - 1
