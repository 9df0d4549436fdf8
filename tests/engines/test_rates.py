"""Rates: the steps that are timed, on a session that only checks them."""

from typing import Any, cast

import numpy as np
import pytest

from nemo_trt.engines.rates import batches_up_to, decode_rates, prefill_rates
from nemo_trt.engines.session import Session, Tokens
from nemo_trt.export.samples import SHAPES
from nemo_trt.progress import Silent

pytestmark = pytest.mark.unit


class Recording:
    """Refuses a step past what was bound, as an engine's cache would."""

    config = SHAPES["nemo-tiny"]

    def __init__(self) -> None:
        self.bound, self.steps = 0, list[tuple[int, int, list[int]]]()

    def bind(self, length: int) -> None:
        self.bound = length

    def step(self, ids: Tokens, write_indices: Tokens, logit_indices: Tokens) -> Any:
        rows, tokens = ids.shape
        assert (write_indices + tokens <= self.bound).all() and (logit_indices < tokens).all()
        self.steps.append((rows, tokens, write_indices.tolist()))


def test_decode_steps_follow_the_cached_tokens_and_stay_within_what_is_bound() -> None:
    session = Recording()
    found = decode_rates(cast(Session, session), (1, 2), (16, 32), 3, Silent())
    assert [(one.rows, one.tokens) for one in found] == [(1, 16), (2, 16), (1, 32), (2, 32)]
    assert session.steps == [
        (rows, 1, [tokens + step] * rows)
        for tokens in (16, 32)
        for rows in (1, 2)
        for step in range(3)
    ]
    assert all(one.tokens_per_s == pytest.approx(one.rows / one.step_s) for one in found)


def test_a_prefill_is_one_step_of_the_whole_prompt() -> None:
    session = Recording()
    found = prefill_rates(cast(Session, session), (8, 24), Silent())
    assert [(one.rows, one.tokens) for one in found] == [(1, 8), (1, 24)]
    assert {step[1:][0] for step in session.steps} == {8, 24}
    assert all(np.isclose(one.tokens_per_s, one.tokens / one.step_s) for one in found)


@pytest.mark.parametrize(("most", "batches"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_rows_double_up_to_the_most(most: int, batches: list[int]) -> None:
    assert batches_up_to(most) == batches
