"""Runs a function in a forked process, as servers that load an application before they fork do."""

import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from tests.waiting import LIMIT_S, within


def forked(function: Callable[[], Any]) -> Any:
    """What a function returns in a child of this process, through JSON.

    Raises:
        AssertionError: it raised, or did not end within a generous limit.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if not child:
        try:
            with within():
                said = [True, function()]
        except BaseException:
            said = [False, traceback.format_exc()]
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    try:
        with within(LIMIT_S + 30), os.fdopen(reader, "rb") as pipe:  # the child says why first
            text = pipe.read()
    finally:
        os.kill(child, signal.SIGKILL)  # it hangs, or has nothing left to do
        _, status = os.waitpid(child, 0)
    assert text, f"the child must answer, got status {status}"
    done, found = json.loads(text)
    assert done, found
    return found


def refused(calls: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """The type and text of the error that each call raises; "nothing" where it raises none."""
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "nothing"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found
