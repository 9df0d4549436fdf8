"""How long work reports that it goes on; the command line draws it, a service may log it."""

from typing import Literal, Protocol


class Progress(Protocol):
    """Receives phases in order. A phase ends when the next begins or the work returns."""

    def phase(self, name: str, total: int = 0, unit: Literal["steps", "bytes"] = "steps") -> None:
        """Begin a phase of `total` units; 0 means that the amount is not known."""

    def advance(self, amount: int = 1) -> None:
        """Count `amount` units of the present phase as done."""


class Silent:
    """A `Progress` that says nothing."""

    def phase(self, name: str, total: int = 0, unit: Literal["steps", "bytes"] = "steps") -> None:
        """Ignore."""

    def advance(self, amount: int = 1) -> None:
        """Ignore."""
