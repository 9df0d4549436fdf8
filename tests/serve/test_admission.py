"""Who has a place: groups of requests in the queue, over a session that holds tokens."""

from typing import Any

import pytest

from nemo_trt.errors import QueueFullError
from nemo_trt.serve import Scheduler

from .remembering_rows import RememberingRows
from .test_pages import ask, finished

pytestmark = pytest.mark.unit


def test_the_waiting_answers_of_a_group_that_runs_take_no_place_in_the_queue() -> None:
    session: Any = RememberingRows(rows=1, length=32)
    scheduler = Scheduler(session, max_queue=1)
    running, waiting = object(), object()
    for _ in range(3):
        scheduler.submit(ask([1, 2], 4, group=running))
    scheduler.step()
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    scheduler.submit(ask([3], 4, group=waiting))
    with pytest.raises(QueueFullError, match=r"^1 requests"):
        scheduler.submit(ask([4], 4, group=object()))
    scheduler.submit(ask([1, 2], 4, group=running))
    assert len(finished(scheduler, look=False)) == 5
