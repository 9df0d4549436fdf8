"""Work that nobody waits for ends where it looks, or by what its block says stops it."""

from concurrent.futures import CancelledError

import pytest

from nemo_trt.serve.cancellation import Cancellation, current

pytestmark = pytest.mark.unit


def test_work_goes_on_while_it_is_wanted_and_ends_at_its_next_look_after() -> None:
    cancellation = Cancellation()
    cancellation.require_wanted()
    cancellation.cancel()
    with pytest.raises(CancelledError):
        cancellation.require_wanted()


def test_what_a_block_waits_for_is_stopped_and_its_result_does_not_count() -> None:
    cancellation, stopped = Cancellation(), list[str]()
    with pytest.raises(CancelledError), cancellation.stopping(lambda: stopped.append("once")):
        cancellation.cancel()  # the block ends as if its work were done
    assert stopped == ["once"]


def test_nothing_is_stopped_outside_the_block_and_no_block_begins_for_nobody() -> None:
    cancellation, stopped = Cancellation(), list[str]()
    with cancellation.stopping(lambda: stopped.append("late")):
        pass
    cancellation.cancel()
    entered = False
    with pytest.raises(CancelledError), cancellation.stopping(lambda: stopped.append("never")):
        entered = True
    assert not entered and not stopped


def test_work_finds_the_cancellation_of_its_own_call() -> None:
    one, other = Cancellation(), Cancellation()
    assert one.run(current) is one and other.run(lambda: one.run(current)) is one
    assert current() not in (one, other)
