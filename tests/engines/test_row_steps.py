"""A step that is prepared while another one runs does what one would that was made after it."""

from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.rows import Rows
from tests.serve.remembering_rows import RememberingRows, logits_of

pytestmark = pytest.mark.unit


def rows_with(session: Any, *held: list[int]) -> Rows:
    rows = Rows(session)
    for row, tokens in enumerate(held):
        list(rows.append({row: tokens}))
    return rows


def test_a_prepared_step_goes_on_behind_the_one_that_ran() -> None:
    session = RememberingRows(rows=4, length=16)
    rows = rows_with(session, [1, 2], [3, 4, 5, 6], [7], [8, 9])
    running = rows.launch({0: [1], 2: [2], 3: [3]})
    session.capacity = 16
    step = rows.prepare([2, 0], running, {0: 0.5})
    assert step is not None
    running.wait()
    launched = step.launch([4, 5])  # before anything is done with what ran
    assert session.launched is not None and session.launched[-1].tolist() == [0.5, 0, 0]
    running.settle()
    launched.collect()
    assert [rows.held(row) for row in range(4)] == [
        [1, 2, 1, 5],
        [3, 4, 5, 6],
        [7, 2, 4],
        [8, 9, 3],
    ]
    for row in (0, 2):
        np.testing.assert_array_equal(launched.logits(row, 0, 1)[0], logits_of(rows.held(row)))
    assert session.memory[1, :4].tolist() == [3, 4, 5, 6]


def test_a_row_that_is_emptied_while_a_step_runs_stays_empty() -> None:
    session = RememberingRows(rows=2, length=16)
    rows = rows_with(session, [1, 2], [3])
    session.capacity = 16
    running = rows.launch({0: [1], 1: [2]})
    rows.rewind(0)
    step = rows.prepare([1], running, {})
    assert step is not None
    running.wait()
    launched = step.launch([4])
    running.settle()
    launched.collect()
    assert (rows.held(0), rows.held(1)) == ([], [3, 2, 4])


def test_room_is_not_made_while_a_step_runs() -> None:
    session = RememberingRows(rows=3, length=16)
    rows = rows_with(session, [1], [2, 3, 4], [5])
    running = rows.launch({0: [1], 1: [2], 2: [3]})
    assert session.capacity == 4
    assert rows.prepare([0], running, {}) is not None
    assert rows.prepare([0, 1], running, {}) is None
    assert rows.prepare([0, 2], running, {}) is None  # the row between them is written behind


def test_a_full_row_between_others_runs_its_last_token_again() -> None:
    session = RememberingRows(rows=3, length=4)
    rows = rows_with(session, [1], [2, 3, 4], [5])
    running = rows.launch({0: [1], 1: [6], 2: [3]})
    step = rows.prepare([0, 2], running, {})
    assert step is not None
    running.wait()
    launched = step.launch([4, 5])
    running.settle()
    launched.collect()
    assert session.memory[1].tolist() == rows.held(1) == [2, 3, 4, 6]
