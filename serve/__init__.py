"""Serving: many requests over one session, in process and over HTTP."""

from .engine import Answer, AsyncEngine
from .scheduler import Ended, Output, Request, Scheduler, Usage

__all__ = ["Answer", "AsyncEngine", "Ended", "Output", "Request", "Scheduler", "Usage"]
