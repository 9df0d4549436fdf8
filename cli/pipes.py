"""Output that nobody reads any more: it goes nowhere, and no other broken pipe is taken for it."""

import os
import select
from contextlib import suppress
from typing import IO


def is_closed(stream: IO[str]) -> bool:
    """Whether a stream is a pipe whose reader has left, as in `| head`."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLERR)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # a stream that is no file
        return False


def drop(stream: IO[str]) -> None:
    """Let what is still to be written go nowhere: Python flushes it when it ends."""
    with suppress(OSError, ValueError):  # a stream that is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
