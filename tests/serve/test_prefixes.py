"""Prompts that begin alike are prefilled once, and drafts never change an answer."""

from typing import Any

import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.serve import Request, Scheduler
from nemo_trt.serve.drafts import PromptLookup

from .test_scheduler import GREEDY, TOKENS, Watched, alone, answers, drain, ends, runner, session

__all__ = ["runner", "session"]
LONG = SamplingParams(max_tokens=40, ignore_eos=True)


def ask(scheduler: Scheduler, prompt: list[int], params: SamplingParams = GREEDY) -> Any:
    request_id = scheduler.submit(Request(prompt=prompt, params=params, speculate=False))
    outputs = drain(scheduler)
    return answers(outputs)[request_id], ends(outputs)[request_id].usage.cached_tokens


def test_a_conversation_goes_on_in_the_row_that_holds_it(session: Watched, runner: Runner) -> None:
    scheduler = Scheduler(session)
    first, cached = ask(scheduler, TOKENS[:50])
    assert cached == 0
    longer = TOKENS[:50] + first[:-1] + TOKENS[60:70]  # the last token was never run
    session.steps.clear()
    second, cached = ask(scheduler, longer)
    assert cached == 50 + len(first) - 1
    assert max(tokens for _, tokens in session.steps) == 10
    assert second == alone(runner, longer)


def test_the_same_prompt_runs_one_token_again(session: Watched) -> None:
    scheduler = Scheduler(session)
    first, _ = ask(scheduler, TOKENS[:50])
    assert ask(scheduler, TOKENS[:50]) == (first, 49)


def test_a_beginning_in_a_busy_row_is_copied(session: Watched, runner: Runner) -> None:
    scheduler = Scheduler(session)
    busy = scheduler.submit(Request(prompt=TOKENS[:60], params=LONG, speculate=False))
    scheduler.step()
    other = TOKENS[:55] + TOKENS[100:110]
    joined = scheduler.submit(Request(prompt=other, params=GREEDY))
    outputs = scheduler.step()
    outputs += drain(scheduler)
    assert ends(outputs)[joined].usage.cached_tokens == 55
    assert answers(outputs)[joined] == alone(runner, other)
    whole = alone(runner, TOKENS[:60], LONG)
    assert answers(outputs)[busy] == whole[1:]  # its first came before


def test_a_short_shared_beginning_does_not_cost_others_theirs(session: Watched) -> None:
    """A row is rewound only if that loses less than it keeps; else its beginning is copied."""
    scheduler = Scheduler(session)
    ask(scheduler, TOKENS[:110])
    _, cached = ask(scheduler, TOKENS[:40] + TOKENS[200:240])
    assert cached == 40
    assert ask(scheduler, TOKENS[:110])[1] == 109


def test_the_row_used_longest_ago_is_given_up_first(session: Watched) -> None:
    scheduler = Scheduler(session)
    for start in (0, 100, 200, 300):  # four prompts, three rows: the first is gone
        ask(scheduler, TOKENS[start : start + 50])
    assert [ask(scheduler, TOKENS[s : s + 50])[1] for s in (300, 200, 100)] == [49, 49, 49]
    assert ask(scheduler, TOKENS[:50])[1] == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_no_answer_and_save_steps(
    session: Watched, runner: Runner, temperature: float
) -> None:
    """Tokens are biased to a few, so that answers repeat themselves."""
    bias = dict.fromkeys(TOKENS[:2] if temperature else TOKENS[:1], 100.0)
    params = SamplingParams(
        max_tokens=60, temperature=temperature, seed=5, logit_bias=bias, ignore_eos=True
    )
    prompt = [*TOKENS[:8], *TOKENS[:8], *TOKENS[:5]]
    counts = {}
    for speculate in (False, True):
        scheduler = Scheduler(session)
        session.steps.clear()
        scheduler.submit(Request(prompt=prompt, params=params, speculate=speculate))
        outputs = drain(scheduler)
        counts[speculate] = len(session.steps)
        assert answers(outputs)[0] == alone(runner, prompt, params)
        usage = ends(outputs)[0].usage
        assert bool(usage.drafted_tokens) == speculate
        assert len(session.steps) == 60 - usage.accepted_tokens
    assert counts[True] < counts[False] / (3 if temperature == 0 else 1.05)


@pytest.mark.parametrize(("step_tokens", "longest"), [(1, 1), (6, 2), (12, 4)])
def test_drafts_leave_a_step_within_its_tokens(
    session: Watched, step_tokens: int, longest: int
) -> None:
    scheduler = Scheduler(session, step_tokens=step_tokens)
    params = SamplingParams(max_tokens=30, logit_bias={7: 100.0}, ignore_eos=True)
    for _ in range(3):
        scheduler.submit(Request(prompt=[7] * 6, params=params))
    scheduler.step()
    session.steps.clear()
    for _ in range(4):
        scheduler.step()
    assert {rows for rows, _ in session.steps} == {3}
    assert max(tokens for _, tokens in session.steps) == longest


def test_a_draft_is_what_followed_last_time() -> None:
    lookup = PromptLookup([1, 2, 3, 9, 8, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert lookup.draft(10) == [4, 5, 6, 7]
    assert lookup.draft(2) == [4, 5]
    lookup.judged(4, 4)
    assert lookup.draft(10) == [4, 5, 6, 7, 1, 2, 3, 4]  # and goes round
    assert PromptLookup([1, 2, 3, 4]).draft(4) == []
    assert PromptLookup([1]).draft(4) == []


def test_rejected_drafts_are_followed_by_longer_and_longer_rests() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1, 2, 3])
    rests = []
    for _ in range(4):
        rest = 0
        while not lookup.draft(4):
            rest += 1
        rests.append(rest)
        lookup.judged(4, 0)
    assert rests == [0, 0, 2, 6]
    while not lookup.draft(4):
        pass
    lookup.judged(1, 1)
    assert lookup.draft(4) == [4, 1]  # at once, and longer
