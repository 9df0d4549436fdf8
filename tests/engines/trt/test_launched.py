"""Steps of an engine that are launched: candidates when they are collected, logits on demand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.candidates import Candidates, top_candidates
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.serve import Request, Scheduler

from .fake_device import FakeDevice
from .properties import tokens
from .standin import LOGITS, ROWS, T
from .test_session import bundle, device, opened

pytestmark = pytest.mark.model
__all__ = ["bundle", "device", "opened"]

DEGREES = np.array([0.7, 0.0, 1.3], np.float32)


@pytest.fixture
def filled(opened: Any) -> Iterator[Any]:
    """A session whose rows hold 5, 6 and 7 tokens."""
    session, _ = opened
    for row in range(ROWS):
        length = 5 + row
        session.step(tokens(ROWS, T)[[row], :length], np.array([0]), np.array([[length - 1]]), row)
    yield session


def same(found: Candidates, logits: np.ndarray, degrees: np.ndarray) -> None:
    expected = top_candidates(logits, degrees)
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.logits, expected.logits)
    np.testing.assert_allclose(found.mass, expected.mass, rtol=2e-5)
    np.testing.assert_allclose(found.mass_tempered, expected.mass_tempered, rtol=2e-5)


@pytest.mark.parametrize(
    ("first", "rows", "new", "count"),
    [(0, 3, 1, 1), (0, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (0, 3, 20, 1), (1, 1, 18, 4),
     (1, 2, 3, 2), (0, 1, 3, 3)],
)  # fmt: skip
def test_candidates_and_logits_on_demand_are_those_of_the_whole_step(
    first: int, rows: int, new: int, count: int, filled: Any, device: FakeDevice
) -> None:
    asked = slice(first, first + rows)
    ids, where = tokens(ROWS, T)[asked, 8 : 8 + new], np.arange(5, 5 + ROWS)[asked]
    ends = np.full(rows, new) if count == 1 else np.arange(new, new + rows).clip(count, new)
    wanted = ends[:, None] - count + np.arange(count)
    expected = filled.step(ids, where, wanted, first).copy()
    before = device.calls.copy()
    filled.launch(ids, where, wanted, first, DEGREES[asked])
    moved = device.calls - before
    assert not moved["download"] and not moved["wait"], "nothing waits yet"
    assert moved["record"] == 1
    result = filled.collect()
    assert (device.calls - before)["wait"] == 1
    at = [(row, position) for row in range(rows) for position in range(count)]
    found = result.candidates(at)
    same(found, expected.reshape(-1, expected.shape[-1]), np.repeat(DEGREES[asked], count))
    for row in range(rows):
        assert np.array_equal(result.logits(row, 0, count), expected[row])
        assert np.array_equal(result.logits(row, count - 1, count)[0], expected[row, -1])
    reverse = result.candidates(at[::-1])
    assert np.array_equal(reverse.ids, found.ids[::-1])


def test_rows_in_several_windows_have_candidates_of_their_own(
    filled: Any, device: FakeDevice
) -> None:
    """A full row between them may not run along, so each has a run; none overwrites another."""
    filled.step(tokens(1, T), np.array([0]), np.array([[T - 1]]), 1)
    launches = device.calls["launch"]
    ids, where = tokens(ROWS, T)[:, 9:10], np.array([5, T - 1, 7])
    wanted = np.zeros((ROWS, 1), np.int64)
    expected = filled.step(ids, where, wanted).copy()
    filled.launch(ids, where, wanted, 0, DEGREES)
    result = filled.collect()
    assert device.calls["launch"] > launches
    same(result.candidates([(row, 0) for row in range(ROWS)]), expected[:, 0], DEGREES)
    for row in range(ROWS):
        assert np.array_equal(result.logits(row, 0, 1), expected[row])


@pytest.mark.parametrize(("rows", "count"), [(ROWS, 2), (1, LOGITS + 1)])
def test_a_step_whose_logits_do_not_fit_the_device_at_once_gives_them_whole(
    rows: int, count: int, filled: Any
) -> None:
    ids, where = tokens(rows, T)[:, 8:16], np.full(rows, 5)
    wanted = np.tile(np.arange(8 - count, 8), (rows, 1))
    expected = filled.step(ids, where, wanted).copy()
    filled.launch(ids, where, wanted, 0, DEGREES[:rows])
    result = filled.collect()
    assert result.candidates([(0, 0)]) is None
    for row in range(rows):
        assert np.array_equal(result.logits(row, 0, count), expected[row])


def answers(session: Any) -> dict[int, list[int]]:
    scheduler = Scheduler(session, prefill_tokens=16)
    prompts = tokens(6, 30).tolist()
    for number, prompt in enumerate(prompts):
        params = SamplingParams(
            max_tokens=9,
            temperature=0.0 if number % 3 == 0 else 0.9,
            top_p=0.9 if number % 2 else 1.0,
            seed=number,
            ignore_eos=True,
            repetition_penalty=1.2 if number == 4 else 1.0,
            logprobs=3 if number == 5 else None,
        )
        scheduler.submit(Request(prompt=prompt[: 4 + 5 * number], params=params))
    found: dict[int, list[int]] = {}
    while not scheduler.idle:
        for output in scheduler.step():
            assert output.ended is None or output.ended.error is None, output
            if output.event:
                found.setdefault(output.request_id, []).append(output.event.token_id)
    return found


def test_answers_from_candidates_are_those_from_whole_logits(
    opened: Any, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = opened
    found = answers(session)
    assert device.calls["wait"] > 9
    before = device.calls["wait"]
    monkeypatch.setattr(session._outputs, "positions", 0)
    assert answers(session) == found
    assert device.calls["wait"] == before
