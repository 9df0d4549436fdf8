"""Runs probes one by one, and prints what each found at once: a crash leaves what came before."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from nemo_trt.errors import NemoTrtError
from nemo_trt.progress import Progress

from .fact import Fact, Outcome, Subject


def probe_all(
    facts: Iterable[Fact[Subject]], subject: Subject, progress: Progress
) -> list[dict[str, Any]]:
    """What the probes of some facts found: the fields of each `Outcome`, and its "fact"."""
    found = []
    for fact in facts:
        progress.phase(f"probe {fact.name}")
        print(f"{fact.name}, {fact.probe.__name__}", flush=True)
        outcome = _outcome(fact, subject)
        print(f"{fact.name} {outcome.found}: {outcome.measured}", flush=True)
        found.append({"fact": fact.name, **asdict(outcome)})
    return found


def wrong(outcomes: Iterable[dict[str, Any]]) -> list[str]:
    """Why the smoke fails, of each outcome that fails it."""
    return [f"{one['fact']}: {one['measured']}" for one in outcomes if one["wrong"]]


def _outcome(fact: Fact[Subject], subject: Subject) -> Outcome:
    try:
        return fact.probe(subject)
    except NemoTrtError as error:
        return Outcome(found="undecided", measured=f"the probe broke off: {error}", wrong=True)
