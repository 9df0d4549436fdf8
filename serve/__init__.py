"""Serving: many requests over one session, its cache divided into slots."""

from .scheduler import Ended, Output, Request, Scheduler, Usage

__all__ = ["Ended", "Output", "Request", "Scheduler", "Usage"]
