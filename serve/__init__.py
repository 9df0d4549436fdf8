"""Serving: many requests over one session, in process and over HTTP."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answer import Answer
    from .engine import AsyncEngine
    from .http import create_app
    from .options import ServeOptions
    from .request import Ended, Output, Request, Usage
    from .scheduler import Scheduler

_HOMES = {
    "Answer": "answer",
    "AsyncEngine": "engine",
    "Ended": "request",
    "Output": "request",
    "Request": "request",
    "Scheduler": "scheduler",
    "ServeOptions": "options",
    "Usage": "request",
    "create_app": "http",
}
__all__ = [
    "Answer",
    "AsyncEngine",
    "Ended",
    "Output",
    "Request",
    "Scheduler",
    "ServeOptions",
    "Usage",
    "create_app",
]


def __getattr__(name: str) -> Any:
    """Names load when they are asked for: each needs an extra that the others do without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
