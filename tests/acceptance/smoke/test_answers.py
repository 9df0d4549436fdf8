"""Probes of answers: the stand-in confirms every fact, and each fault of it is seen."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nemo_trt import contract
from nemo_trt.acceptance.smoke import answers
from nemo_trt.acceptance.smoke.fact import Outcome
from nemo_trt.acceptance.smoke.facts import FACTS
from nemo_trt.acceptance.smoke.opened import Opened
from nemo_trt.passes.add_candidates import IDS, MASS
from tests.engines.trt.fake_device import FakeDevice
from tests.engines.trt.standin import PROFILES, FakeContext, record_of

from .lab import Lab, after_each_run, lies_at, logits_of

pytestmark = pytest.mark.model

Probe = Callable[[Opened], Outcome]
PROBES = [fact.probe for fact in FACTS if fact.probe.__module__ == answers.__name__]
WORDS = {
    answers.a_step_repeats_itself: "7 repeated steps give the same logits, bit for bit",
    answers.a_graph_equals_a_plain_run: "16 replayed steps give the same logits, bit for bit",
    answers.a_decode_step_keeps_the_cache: "0 of 2048 earlier numbers changed in 8 steps, 0 new",
    answers.rows_do_not_see_each_other: "2 steps beside 2 other rows give the same logits",
    answers.what_lies_behind_a_row_is_not_read: "1 steps in front of another tail give the same",
    answers.candidates_are_the_largest: "256 candidates, 0 with an equal; largest values agree",
}


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_a_sound_engine_confirms_the_fact(probe: Probe, lab: Lab) -> None:
    found = probe(lab.subject)
    assert (found.found, found.wrong) == ("confirmed", False), found
    assert found.measured.startswith(WORDS[probe])


def scaled(factor: float) -> Callable[[FakeContext], None]:
    def happens(context: FakeContext) -> None:
        logits_of(context)[...] *= factor

    return happens


def drifting(step: float) -> Callable[[FakeContext], None]:
    """Each run's logits are a little larger than those of the one before."""
    runs = iter(range(10**6))
    return lambda context: scaled(1 + step * next(runs))(context)


def decoding(fault: Callable[[FakeContext], None]) -> Callable[[FakeContext], None]:
    return lambda context: fault(context) if context.profile.startswith("decode") else None


def caches(context: FakeContext) -> list[np.ndarray]:
    return [lies_at(context, name, np.float16) for name in sorted(context.plan.caches)]


def an_old_token_changes(context: FakeContext) -> None:
    caches(context)[1][0, 0, 3, 2] += 1


def a_new_token_is_lost(context: FakeContext) -> None:
    start = lies_at(context, contract.WRITE_INDICES, np.int64)[0]
    for cache in caches(context):
        cache[0, :, start] = 0


def rows_leak(context: FakeContext) -> None:
    logits = logits_of(context)
    logits += lies_at(context, contract.INPUT_IDS, np.int64).sum() / 100


def the_tail_leaks(context: FakeContext) -> None:
    logits_of(context)[0, 0, 7] += caches(context)[0][0, :, -1].sum(dtype=np.float32)


def tokens_are_exchanged(context: FakeContext) -> None:
    rows, count = context.shapes[contract.LOGIT_INDICES]
    ids = context.plan.device.at(context.addresses[IDS], (rows, count, 256), np.int32)
    ids[..., :2] = ids[..., 1::-1].copy()


def a_sum_forgets(context: FakeContext) -> None:
    count = context.shapes[contract.LOGIT_INDICES][1]
    context.plan.device.at(context.addresses[MASS], (count,), np.float32)[...] *= 0.99


@pytest.mark.parametrize(
    ("probe", "fault", "wrong"),
    [
        (answers.a_step_repeats_itself, drifting(1e-4), False),
        (answers.a_step_repeats_itself, drifting(1e-1), True),
        (answers.a_decode_step_keeps_the_cache, decoding(an_old_token_changes), True),
        (answers.a_decode_step_keeps_the_cache, decoding(a_new_token_is_lost), True),
        (answers.a_decode_step_keeps_the_cache, decoding(scaled(1.2)), True),
        (answers.rows_do_not_see_each_other, rows_leak, True),
        (answers.what_lies_behind_a_row_is_not_read, the_tail_leaks, True),
        (answers.candidates_are_the_largest, tokens_are_exchanged, True),
        (answers.candidates_are_the_largest, scaled(1.01), True),
        (answers.candidates_are_the_largest, a_sum_forgets, True),
    ],
)
def test_a_fault_refutes_the_fact(
    probe: Probe,
    fault: Callable[[FakeContext], None],
    wrong: bool,
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after_each_run(monkeypatch, fault)
    found = probe(lab.subject)
    assert (found.found, found.wrong) == ("refuted", wrong), found


@pytest.mark.parametrize(("factor", "wrong"), [(1.001, False), (2.0, True)])
def test_a_graph_that_computes_something_else_refutes_it(
    factor: float, wrong: bool, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = []
    after_each_run(monkeypatch, lambda context: scaled(factor)(context) if inside else None)
    plain = FakeDevice.launch

    def launch(device: FakeDevice, graph: object) -> None:
        inside.append(graph)
        plain(device, graph)
        inside.clear()

    monkeypatch.setattr(FakeDevice, "launch", launch)
    found = answers.a_graph_equals_a_plain_run(lab.subject)
    assert (found.found, found.wrong) == ("refuted", wrong), found
    assert found.measured.startswith("16 of 16 replayed steps give other logits, by ")


def test_logits_that_are_no_numbers_are_wrong(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter(range(10**6))
    after_each_run(monkeypatch, lambda context: next(runs) > 20 and scaled(np.nan)(context))
    found = answers.a_step_repeats_itself(lab.subject)
    assert (found.found, found.wrong) == ("refuted", True), found


def test_what_an_engine_lacks_is_undecided(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeContext, "capturable", lambda context, stream: False)
    found = answers.a_graph_equals_a_plain_run(lab.subject)
    assert found.found == "undecided" and "cannot be captured" in found.measured
    lab.record = record_of(
        lab.bundle, (PROFILES[:2],), options=replace(lab.record.options, max_batch=1)
    )
    assert answers.rows_do_not_see_each_other(lab.subject).found == "undecided"
