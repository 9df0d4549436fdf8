"""A thread that runs a session's steps while their caller does something else."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")


class StepThread:
    """Runs one call after the other, always in the same thread. It starts with the first call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nemo-trt step")

    def start(self, function: Callable[..., Result], *arguments: object) -> Callable[[], Result]:
        """Begin a call.

        Returns:
            What waits for it, and returns or raises what it does.
        """
        call = self._pool.submit(function, *arguments)
        return lambda: _result(call)

    def close(self) -> None:
        """Wait for the call that runs; none can be started after it."""
        self._pool.shutdown()


def _result(call: "Future[Result]") -> Result:
    try:
        return call.result()
    except BaseException:  # Ctrl-C, too: the call still uses what its caller would go on to free
        wait([call])
        raise
