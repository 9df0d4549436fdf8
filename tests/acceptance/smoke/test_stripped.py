"""The probe of an engine that takes its weights from the bundle; each fault is seen."""

from dataclasses import replace

import pytest

from nemo_trt.acceptance.smoke.stripped import a_stripped_engine_does_the_same
from tests.engines.trt.standin import FakeContext

from .lab import Lab, after_each_run, logits_of

pytestmark = pytest.mark.model


def test_the_same_logits_in_the_same_time_confirm_it(lab: Lab) -> None:
    found = a_stripped_engine_does_the_same(lab.subject)
    assert found.found == "confirmed" and found.measured.startswith("logits are ")
    assert found.measured.endswith("a step takes 0 us, 0 with weights in the plan")


def test_other_logits_are_wrong(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def drift(context: FakeContext) -> None:
        if context.plan.weights:
            logits_of(context)[0] *= 2

    after_each_run(monkeypatch, drift)
    found = a_stripped_engine_does_the_same(lab.subject)
    assert found.found == "refuted" and found.wrong


def test_slower_steps_are_told_and_fail_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(context: FakeContext) -> None:
        lab.wall.now += 12e-4 if context.plan.weights else 1e-3

    after_each_run(monkeypatch, takes)
    found = a_stripped_engine_does_the_same(lab.subject)
    assert found.found == "refuted" and not found.wrong
    assert "a step takes 1200 us, 1000 with weights in the plan" in found.measured


def test_without_such_an_engine_nothing_is_decided(lab: Lab) -> None:
    assert a_stripped_engine_does_the_same(replace(lab.subject, stripped=None)).found == "undecided"
