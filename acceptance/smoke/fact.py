"""A fact that was inferred and has not been seen, and what its probe found on a machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Found = Literal["confirmed", "refuted", "undecided"]
Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a probe found.

    Attributes:
        found: "undecided" where this machine, or this engine, cannot tell.
        measured: what was seen, in words with numbers.
        wrong: answers are wrong, which fails the smoke; any other refuted fact does not.
    """

    found: Found
    measured: str
    wrong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact(Generic[Subject]):
    """Something that code or documentation rests on, inferred and not seen.

    Attributes:
        name: "F1", as documentation refers to it.
        says: the fact.
        matters: what rests on it.
        probe: looks whether it holds.
        refuted: what to do if it does not.
        fails: what it takes for a refuted fact to fail the smoke; "" if it never does.
        page, section: the section of the documentation that states it.
    """

    name: str
    says: str
    matters: str
    probe: Callable[[Subject], Outcome]
    refuted: str
    fails: str = ""
    page: str = "docs/tensorrt.md"
    section: str


def confirmed(measured: str) -> Outcome:
    """It holds."""
    return Outcome(found="confirmed", measured=measured)


def refuted(measured: str, *, wrong: bool = False) -> Outcome:
    """It does not hold."""
    return Outcome(found="refuted", measured=measured, wrong=wrong)


def undecided(why: str) -> Outcome:
    """This machine, or this engine, cannot tell."""
    return Outcome(found="undecided", measured=why)
