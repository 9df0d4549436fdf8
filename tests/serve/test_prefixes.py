"""Prompts that begin alike are prefilled once, and drafts never change an answer."""

from typing import Any

import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.serve import Request, Scheduler
from nemo_trt.serve.drafts import DraftSource, PromptLookup, draft_length

from .test_scheduler import (
    GREEDY,
    ROWS,
    TOKENS,
    Watched,
    alone,
    answers,
    drain,
    ends,
    runner,
    session,
)

pytestmark = pytest.mark.model

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


def test_a_draft_is_what_followed_last_time() -> None:
    lookup = PromptLookup(DraftSource([1, 2, 3, 9, 8, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3]))
    assert lookup.draft(4) == [4, 5, 6, 7]
    assert lookup.draft(2) == [4, 5]
    assert lookup.draft(9) == [4, 5, 6, 7, 1, 2, 3, 4, 5]  # and goes round
    assert PromptLookup(DraftSource([1, 2, 3, 4])).draft(4) == []
    assert PromptLookup(DraftSource([1])).draft(4) == []


def test_trust_follows_what_comes_without_a_draft_being_run() -> None:
    lookup = PromptLookup(DraftSource([1, 2, 3, 4] * 2))
    for _ in range(8):
        for token in (1, 2, 3, 4):
            lookup.push(token)
    assert lookup.rate > 0.98
    before = lookup.rate
    for token in (50, 51, 52, 53):  # one wrong prediction; behind it there are none
        lookup.push(token)
    assert lookup.rate == pytest.approx(before * 7 / 8)


def test_drafts_are_as_long_as_pays() -> None:
    def cost(tokens: int) -> float:
        return 1 + tokens / 4

    assert draft_length([0.0], cost) == draft_length([], cost) == 0
    assert draft_length([0.1], cost) == 0
    assert draft_length([1.0], cost) == 16
    assert 1 <= draft_length([0.5], cost) < draft_length([0.9], cost) < 16
    assert draft_length([1.0] + [0.0] * 7, lambda tokens: 1 + 8 * tokens / 4) == 0  # 7 rows padded
    assert draft_length([0.7] * 8, lambda tokens: 8 * (1 + tokens / 4)) > 0  # rows one by one


def test_a_row_that_repeats_itself_alone_is_not_worth_padding_all_others(session: Watched) -> None:
    scheduler = Scheduler(session)
    bias = {7: 100.0}
    for start in (0, 50):
        scheduler.submit(Request(prompt=TOKENS[start : start + 30], params=GREEDY))
    params = SamplingParams(max_tokens=12, logit_bias=bias, ignore_eos=True)
    scheduler.submit(Request(prompt=[7] * 6, params=params))
    scheduler.step()
    session.steps.clear()
    session.cost = lambda rows, tokens: 1.0 + rows * tokens  # each token costs a reading
    scheduler.step()
    assert session.steps == [(3, 1)]
    session.cost = lambda rows, tokens: 1.0  # tokens are free
    scheduler.step()
    assert session.steps[-1][1] > 1


def test_answers_of_one_prompt_prefill_it_once(session: Watched, runner: Runner) -> None:
    scheduler = Scheduler(session, prefill_tokens=32)
    prompt = TOKENS[:100]
    ids = [
        scheduler.submit(Request(prompt=prompt, params=GREEDY, speculate=False))
        for _ in range(ROWS)
    ]
    outputs = drain(scheduler)
    assert [answers(outputs)[number] for number in ids] == [alone(runner, prompt)] * ROWS
    assert [ends(outputs)[number].usage.cached_tokens for number in ids] == [0, 99, 99]
    prefilled = sum(rows * tokens for rows, tokens in session.steps if tokens > 1)
    assert prefilled <= len(prompt) + 2  # and a token each of the others, perhaps in one step


def test_who_waits_for_a_prompt_that_is_cancelled_goes_on_from_what_there_is(
    session: Watched, runner: Runner
) -> None:
    scheduler = Scheduler(session, prefill_tokens=40)
    first = scheduler.submit(Request(prompt=TOKENS[:100], params=GREEDY))
    second = scheduler.submit(Request(prompt=TOKENS[:100], params=GREEDY))
    assert not scheduler.step()
    scheduler.cancel(first)
    outputs = drain(scheduler)
    assert answers(outputs)[second] == alone(runner, TOKENS[:100])
    assert ends(outputs)[second].usage.cached_tokens == 40
