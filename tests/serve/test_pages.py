"""The scheduler on pages: over a session whose answers depend on every token that a row's pages
hold, a thousand random schedules give each request the answer that it gets alone."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from nemo_trt.engines.paged_rows import PagedRows
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import CapacityError, RequestError
from nemo_trt.serve import Output, Request, Scheduler
from nemo_trt.serve.metrics import Metrics
from nemo_trt.serve.scoring import PromptScores
from tests.engines.test_page_pool import checked

from .remembering import Letters, Remembering, answer_of, next_token

pytestmark = pytest.mark.unit


def scheduler_of(session: Any, **more: Any) -> Any:
    tokenizer: Any = Letters()
    return Scheduler(session, tokenizer, **more)


def sound(scheduler: Scheduler) -> None:
    """Pages are accounted for, and rows without a request hold none."""
    rows: Any = scheduler._rows
    checked(rows.pool, rows._pages)
    for row, pages in enumerate(rows._pages):
        assert bool(pages) <= (row in scheduler._places.running)
        assert len(rows.held(row)) <= len(pages) * rows.pool.page_tokens


def finished(
    scheduler: Scheduler, outputs: list[Output] | None = None, *, look: bool = True
) -> dict[int, Any]:
    """Tokens and end of every request."""
    outputs = outputs if outputs is not None else []
    for _ in range(2000):
        if scheduler.idle:
            break
        outputs += scheduler.step()
        if look:
            sound(scheduler)
    assert scheduler.idle, "the scheduler must come to an end"
    found: dict[int, Any] = {}
    for output in outputs:
        tokens, _ = found.setdefault(output.request_id, ([], None))
        if output.event:
            tokens.append(output.event.token_id)
        if output.ended:
            found[output.request_id] = tokens, output.ended
    return found


def ask(
    prompt: Sequence[int],
    max_tokens: int = 8,
    *,
    stop: tuple[str, ...] = (),
    stop_token_ids: tuple[int, ...] = (),
    **more: Any,
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, stop=stop, stop_token_ids=stop_token_ids)
    return Request(prompt=list(prompt), params=params, **more)


def random_schedule(seed: int) -> int:
    """Requests of all kinds come, go and fail; return how often one was preempted."""
    dice = random.Random(seed)
    page_tokens, length = dice.choice((1, 2, 4, 8)), dice.randint(8, 28)
    least = -(-length // page_tokens)
    session = Remembering(
        rows=dice.randint(1, 5),
        length=length,
        pages=least + dice.choice((0, 1, dice.randint(0, 2 * least))),
        page_tokens=page_tokens,
        overlaps=bool(seed % 2),
    )
    scheduler = scheduler_of(session, prefill_tokens=dice.choice((2, 8, 32)))
    asked: dict[int, Request] = {}
    outputs: list[Output] = []
    failed = False
    for _ in range(dice.randint(2, 6)):
        kind = dice.random()
        stem = [dice.randint(0, 1)] * dice.randint(0, length // 2)
        tail = [dice.randint(0, 2) for _ in range(dice.randint(1, length // 3))]
        request = ask(
            (stem + tail)[: length - 1],
            dice.randint(1, length // 2),
            stop=(dice.choice("abcfgh"),) if dice.random() < 0.3 else (),
            stop_token_ids=(dice.choice((0, 5, 6, 7)),) if dice.random() < 0.3 else (),
            speculate=dice.random() < 0.5,
            group="one" if kind < 0.3 else None,
            scores=PromptScores(0) if kind > 0.9 else None,
        )
        asked[scheduler.submit(request)] = request
        for _ in range(dice.randint(0, 5)):
            if dice.random() < 0.03:
                session.failures, failed = 1, True
            outputs += scheduler.step()
            if seed % 4 == 0:
                sound(scheduler)
        if dice.random() < 0.15:
            output = scheduler.cancel(dice.choice(list(asked)))
            outputs += [output] if output else []
    for number, (tokens, ended) in finished(scheduler, outputs, look=seed % 4 == 0).items():
        request = asked[number]
        expected = answer_of(request.prompt, request.params.max_tokens, length)
        last = [ord(stop) - 97 for stop in request.params.stop]  # found while the next step runs
        for token in (*last, *request.params.stop_token_ids):
            if token in expected:
                expected = expected[: expected.index(token) + 1]
        assert ended is not None
        if ended.reason in ("length", "stop"):
            assert tokens == expected
        else:
            assert tokens == expected[: len(tokens)]
            assert ended.reason == "cancelled" or (failed and ended.reason == "error")
        if request.scores and tokens:
            assert [score.token_id for score in request.scores.scores] == request.prompt[1:]
        assert ended.usage.completion_tokens == len(tokens)
    sound(scheduler)
    assert len(finished(scheduler, outputs)) == len(asked)
    return sum(output.ended.usage.preemptions for output in outputs if output.ended)


def test_a_thousand_random_schedules_answer_as_one_by_one() -> None:
    assert sum(random_schedule(seed) for seed in range(1000)) > 50


def test_who_shares_a_prefix_holds_its_pages_and_copies_the_last_alone() -> None:
    session = Remembering(rows=3, length=64, pages=24, page_tokens=8)
    scheduler = scheduler_of(session, prefill_tokens=64)
    prompt = [1, 2] * 15  # three pages, and most of one
    first = scheduler.submit(ask(prompt, 20))
    scheduler.step()
    others = [scheduler.submit(ask(prompt, 4)) for _ in range(2)]
    outputs = scheduler.step()
    rows: Any = scheduler._rows
    tables = rows._pages
    assert tables[0][:3] == tables[1][:3] == tables[2][:3]
    assert len({pages[3] for pages in tables}) == 3 and session.copies == 2
    assert scheduler.pool.num_held == 6
    found = finished(scheduler, outputs)
    assert [found[number][1].usage.cached_tokens for number in others] == [29, 29]
    assert found[others[0]][0] == answer_of(prompt, 4, 64)
    assert found[first][0] == answer_of(prompt, 20, 64)[1:]


def test_a_conversation_goes_on_in_its_own_pages() -> None:
    session = Remembering(rows=1, length=64, pages=8, page_tokens=8)
    scheduler = scheduler_of(session)
    prompt = [1, 2, 0] * 7
    first = scheduler.submit(ask(prompt, 6))
    answer = finished(scheduler)[first][0]
    again = scheduler.submit(ask([*prompt, *answer, 3, 4], 6))
    found = finished(scheduler)[again]
    assert found[1].usage.cached_tokens == len(prompt) + 5 and session.copies == 0
    assert found[0] == answer_of([*prompt, *answer, 3, 4], 6, 64)


def test_a_full_pool_preempts_the_youngest_and_the_oldest_never_waits() -> None:
    session = Remembering(rows=3, length=32, pages=8, page_tokens=4)
    scheduler = scheduler_of(session)
    requests = [[0, 1, 2, 3], [1, 1, 2, 3], [2, 1, 2, 3]]
    numbers = [scheduler.submit(ask(prompt, 28, speculate=False)) for prompt in requests]
    outputs: list[Output] = []
    for steps in range(1, 29):
        outputs += scheduler.step()
        assert sum(output.request_id == numbers[0] for output in outputs) == steps
    found = finished(scheduler, outputs)
    assert [found[number][0] for number in numbers] == [answer_of(p, 28, 32) for p in requests]
    ends = [output.request_id for output in outputs if output.ended]
    assert ends == numbers and [found[n][1].usage.preemptions > 0 for n in numbers] == [
        False,
        True,
        True,
    ]


def test_finished_prefixes_are_given_up_by_age() -> None:
    session = Remembering(rows=1, length=16, pages=8, page_tokens=4)
    scheduler = scheduler_of(session)

    def cached(start: int) -> int:
        number = scheduler.submit(ask([start, 1, 2, 3, 4, 5, 6, 7, 8], 1))
        return int(finished(scheduler)[number][1].usage.cached_tokens)

    assert [cached(start) for start in (0, 1, 0, 2)] == [0, 0, 8, 0]  # three pages each, of eight
    assert [cached(start) for start in (2, 0)] == [8, 8]
    assert cached(1) < 8


def test_a_prompt_waits_until_there_are_pages_for_all_of_it() -> None:
    session = Remembering(rows=2, length=28, pages=7, page_tokens=4)
    scheduler = scheduler_of(session)
    scheduler.submit(ask(range(12), 8, speculate=False))
    scheduler.step()
    late = scheduler.submit(ask(range(3, 15), 4))
    for _ in range(6):
        scheduler.step()
        assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    found = finished(scheduler)
    assert found[late][0] == answer_of(range(3, 15), 4, 28)
    assert found[late][1].usage.preemptions == 0


def test_what_a_failed_step_touched_is_found_by_nobody() -> None:
    session = Remembering(rows=2, length=32, pages=16, page_tokens=4)
    scheduler = scheduler_of(session)
    scheduler.submit(ask(range(12), 8))
    scheduler.step()
    session.failures = 1
    scheduler.step()
    assert scheduler.idle and scheduler.pool.num_held == 0
    again = scheduler.submit(ask(range(12), 8))
    assert finished(scheduler)[again][1].usage.cached_tokens == 0


def test_rows_may_be_rewound_into_pages_that_others_share() -> None:
    session: Any = Remembering(rows=2, length=32, pages=16, page_tokens=4)
    rows = PagedRows(session)

    def append(row: int, tokens: Sequence[int]) -> int:
        rows.require_fit({row: tokens})
        ((_, logits),) = rows.append({row: tokens})
        return int(logits[-1].argmax())

    append(0, range(10))
    rows.copy(0, 1, 7)
    assert rows._pages[0][:2] == rows._pages[1]
    assert append(1, [9, 9, 9]) == next_token([*range(7), 9, 9, 9])
    assert append(0, [5]) == next_token([*range(10), 5])
    rows.copy(0, 1, 6)
    rows.rewind(0, 5)
    assert append(0, [9, 9, 9, 9]) == next_token([*range(5), 9, 9, 9, 9])
    assert append(1, [4]) == next_token([*range(6), 4])
    rows.copy(1, 0, 7)  # within a page that is not full
    rows.rewind(1, 5)
    assert append(1, [8]) == next_token([*range(5), 8])
    assert append(0, [3]) == next_token([*range(6), 4, 3])
    rows.rewind(0)
    rows.rewind(1)
    checked(rows.pool, rows._pages)
    assert rows.pool.num_available == 16


def test_a_runner_says_that_the_pages_are_used_up() -> None:
    session: Any = Remembering(rows=2, length=16, pages=4, page_tokens=4)
    rows = PagedRows(session)
    list(rows.append({0: list(range(12))}))
    with pytest.raises(CapacityError, match="all 4 pages of 4 tokens are held"):
        list(rows.append({1: [1] * 8}))
    assert rows.held(1) == []


def test_a_pool_holds_the_longest_row() -> None:
    session: Any = Remembering(rows=2, length=16, pages=3, page_tokens=4)
    with pytest.raises(RequestError, match="16 tokens, in 4 pages, got 3"):
        scheduler_of(session)


def test_what_a_step_touched_that_failed_after_its_row_was_given_back_is_found_by_nobody() -> None:
    session = Remembering(rows=2, length=32, pages=16, page_tokens=4, overlaps=True)
    scheduler = scheduler_of(session)
    number = scheduler.submit(ask(range(12), 8, speculate=False))
    scheduler.step()
    assert session.launched is not None
    scheduler.cancel(number)
    session.failures = 1
    scheduler.step()
    sound(scheduler)
    again = scheduler.submit(ask(range(12), 8))
    assert finished(scheduler)[again][1].usage.cached_tokens == 0


def test_a_row_that_is_given_back_while_its_first_step_runs_holds_nothing() -> None:
    session = Remembering(rows=1, length=32, pages=8, page_tokens=4, overlaps=True)
    scheduler = scheduler_of(session, prefill_tokens=4)
    first, second = (scheduler.submit(ask([n, 1, 2, 3], 1)) for n in range(2))
    scheduler.step()  # the second has its row now, and its first step runs
    assert session.launched is not None and scheduler.num_waiting == 0
    scheduler.cancel(second)
    scheduler.step()
    sound(scheduler)
    assert scheduler._rows.held(0) == [] and first == 0


def test_nobody_finds_a_tainted_page_by_way_of_a_row_that_shares_it() -> None:
    session: Any = Remembering(rows=2, length=32, pages=16, page_tokens=4)
    rows = PagedRows(session)
    list(rows.append({0: list(range(12))}))
    rows.copy(0, 1, 10)
    rows.clear(0)
    assert rows.match(list(range(12))) == ([], 0)
    list(rows.append({1: [3, 3, 3]}))
    assert rows.match([*range(10), 3, 3, 3, 3]) == ([], 0)
    rows.clear(1)
    checked(rows.pool, rows._pages)
    assert rows.pool.num_available == rows.pool.num_free == 16


def test_metrics_speak_of_pages() -> None:
    session: Any = Remembering(rows=2, length=32, pages=16, page_tokens=4)
    scheduler, metrics = scheduler_of(session), Metrics()
    metrics.watch(scheduler, session)

    def figures() -> dict[str, float]:
        lines = metrics.text().decode().splitlines()
        pairs = (line.split(" ") for line in lines if line.startswith("nemo_trt_cache"))
        return {name.removeprefix("nemo_trt_cache_"): float(value) for name, value in pairs}

    scheduler.submit(ask(range(10), 4))
    scheduler.step()
    assert figures() == {
        "tokens": 64, "tokens_used": 12, "pages": 16, "pages_held": 3, "pages_kept": 0,
    }  # fmt: skip
    finished(scheduler)
    assert figures() == {
        "tokens": 64, "tokens_used": 16, "pages": 16, "pages_held": 0, "pages_kept": 4,
    }  # fmt: skip


def test_a_prompt_that_is_preempted_while_it_is_scored_has_each_score_once() -> None:
    session = Remembering(rows=2, length=32, pages=8, page_tokens=4)
    scheduler = scheduler_of(session, prefill_tokens=1)
    scheduler.submit(ask([1, 2], 30, speculate=False))
    for _ in range(3):
        scheduler.step()
    prompt, scores = [3, *[1, 2] * 7, 3], PromptScores(0)
    number = scheduler.submit(ask(prompt, scores=scores, score_only=True))
    found = finished(scheduler)[number]
    assert found[1].usage.preemptions == 1 and found[1].reason == "length"
    assert [score.token_id for score in scores.scores] == prompt[1:]


def test_equal_tokens_behind_another_prefix_are_not_shared() -> None:
    session: Any = Remembering(rows=2, length=32, pages=16, page_tokens=4)
    rows = PagedRows(session)
    list(rows.append({0: [1] * 8, 1: [*[2] * 8, 3, 3, 3]}))
    rows.finish(0)
    assert rows.match([*[1] * 8, 3, 3, 3, 0])[1] == 8
    assert rows.match([*[2] * 8, 3, 3, 3, 0])[1] == 11


def test_who_waits_for_a_prefix_that_another_runs_gives_up_what_it_found_before() -> None:
    session = Remembering(rows=2, length=64, pages=40, page_tokens=4)
    scheduler = scheduler_of(session, prefill_tokens=8)
    prompt = [1, 2, 0] * 16
    scheduler.submit(ask(prompt[:9], 1))
    finished(scheduler)
    both = [scheduler.submit(ask(prompt, 4)) for _ in range(2)]
    found = finished(scheduler)
    assert [found[number][0] for number in both] == [answer_of(prompt, 4, 64)] * 2
    assert [found[number][1].usage.cached_tokens for number in both] == [9, 47]


def test_kept_pages_that_a_prompt_finds_are_not_counted_as_free_for_it() -> None:
    session = Remembering(rows=2, length=32, pages=8, page_tokens=4)
    scheduler = scheduler_of(session)
    scheduler.submit(ask([1] * 12, 1))
    finished(scheduler)
    scheduler.submit(ask([2] * 4, 3, speculate=False))
    scheduler.step()
    scheduler.submit(ask([*[1] * 12, *[0] * 8], 1))
    scheduler.step()
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    finished(scheduler)
