"""What is written to the log of the request that is being answered."""

from contextvars import ContextVar, Token
from typing import Any

_notes: ContextVar[dict[str, Any]] = ContextVar("notes")


def begin(notes: dict[str, Any]) -> Token[dict[str, Any]]:
    """A request begins; `notes` collects what is written about it."""
    return _notes.set(notes)


def end(token: Token[dict[str, Any]]) -> None:
    """The request is over."""
    _notes.reset(token)


def note(**fields: Any) -> None:
    """Add fields to the request's line in the log; one that is None is left out."""
    notes = _notes.get(None)
    if notes is not None:
        notes.update({name: value for name, value in fields.items() if value is not None})


def passed_on() -> None:
    """The request is answered by a server behind this one, which logs and counts it."""
    note(passed_on=True)


def request_id() -> str:
    """The present request's id."""
    return str(_notes.get({}).get("request_id", ""))
