"""Traces decoders of one shape once per worker: it takes four seconds, and most exports are alike.

An export gets a copy of the trace; the rest of it runs. The tests of tracing itself do trace.
"""

import sys
from typing import Any

import pytest

REAL = ("test_trace.py", "test_exactness.py", "test_traces.py")
_MODULE = "nemo_trt.export.trace"


class Remembered:
    """`trace_every_layer`, called once for the same arguments."""

    def __init__(self, trace: Any) -> None:
        self.trace, self._known = trace, {}

    def __call__(self, *arguments: Any) -> Any:
        key = repr(arguments)
        if key not in self._known:
            self._known[key] = self.trace(*arguments)
        return self._known[key].clone()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if (module := sys.modules.get(_MODULE)) is None:
        return
    found: Any = module.trace_every_layer
    if item.path.name in REAL:
        if isinstance(found, Remembered):
            item.config.stash[_KEPT] = found
            module.trace_every_layer = found.trace
    elif not isinstance(found, Remembered):
        module.trace_every_layer = item.config.stash.get(_KEPT, None) or Remembered(found)


_KEPT = pytest.StashKey[Remembered]()
