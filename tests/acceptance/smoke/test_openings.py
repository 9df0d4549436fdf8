"""Probes of what opening takes, keeps and refuses, and of what steps cost; each fault is seen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nemo_trt import contract
from nemo_trt.acceptance.smoke import openings, pace
from nemo_trt.acceptance.smoke.fact import Outcome
from nemo_trt.acceptance.smoke.opened import Opened
from nemo_trt.engines.trt.memory import GRAPH_BYTES
from tests.engines.trt.fake_device import FakeDevice
from tests.engines.trt.standin import FakeContext, FakePlan

from .lab import Lab, after_each_run, lies_at

pytestmark = pytest.mark.model

Probe = Callable[[Opened], Outcome]


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (openings.decode_is_captured, "steps of 1, 2, 3 rows were captured"),
        (openings.memory_is_summed_beforehand, "each of 5 contexts and graphs takes"),
        (openings.steps_take_no_memory, "0.0 MiB were taken by 3 prefills and 8 decode steps"),
        (
            openings.mistakes_are_refused,
            "a shape outside the profile, missing memory and too little",
        ),
    ],
)
def test_a_sound_engine_confirms_the_fact(probe: Probe, words: str, lab: Lab) -> None:
    found = probe(lab.subject)
    assert found.found == "confirmed" and words in found.measured, found


def test_a_refused_capture_is_told_with_its_reason(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeContext, "capturable", lambda context, stream: False)
    found = openings.decode_is_captured(lab.subject)
    assert found.found == "refuted" and not found.wrong and "cannot be captured" in found.measured


def test_memory_past_the_sum_is_told_with_both_numbers(lab: Lab) -> None:
    plain = lab.plan

    def plan() -> FakePlan:
        lab.device.taken = 5 * GRAPH_BYTES + 10**6  # beside what is allocated
        return plain()

    lab.plan = plan  # type: ignore[method-assign]
    found = openings.memory_is_summed_beforehand(lab.subject)
    assert found.found == "refuted" and not found.wrong
    assert "16 were assumed" in found.measured


def test_a_step_that_takes_memory_is_seen(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(context: FakeContext) -> None:
        if lies_at(context, contract.WRITE_INDICES, np.int64).any():
            context.plan.device.taken += 2**20  # type: ignore[attr-defined]

    after_each_run(monkeypatch, takes)
    found = openings.steps_take_no_memory(lab.subject)
    assert found.found == "refuted" and found.measured.startswith("8.0 MiB were taken")


def first_then(first: float, second: float, lab: Lab) -> Callable[[int], bytes]:
    def kept(opening: int) -> bytes:
        lab.wall.now += second if opening else first
        return b"kernels"

    return kept


def test_a_runtime_cache_that_is_used_is_confirmed(lab: Lab) -> None:
    lab.kept = first_then(3, 0.5, lab)
    (lab.folder / "engine-ab.runtime-cache").write_bytes(b"of an earlier run")
    found = openings.a_second_opening_compiles_nothing(lab.subject)
    assert found.found == "confirmed"
    assert found.measured == "7 bytes were kept; openings took 3.00 s and then 0.50 s"


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (lambda lab: lambda opening: None, "the first opening kept nothing"),
        (lambda lab: lambda opening: f"kernels {opening}".encode(), "the second wrote others"),
        (lambda lab: first_then(3, 2.9, lab), "3.00 s and then 2.90 s"),
    ],
)
def test_a_runtime_cache_that_is_not_used_refutes_it(kept: Any, words: str, lab: Lab) -> None:
    lab.kept = kept(lab)
    found = openings.a_second_opening_compiles_nothing(lab.subject)
    assert found.found == "refuted" and words in found.measured, found


def test_a_toolkit_that_compiles_when_it_builds_has_no_runtime_cache(lab: Lab) -> None:
    lab.record = replace(lab.record, toolkit="tensorrt")
    assert openings.a_second_opening_compiles_nothing(lab.subject).found == "undecided"
    assert not lab.openings


@pytest.mark.parametrize(
    ("owner", "name", "lenient", "words"),
    [
        (FakeContext, "set_shape", lambda self, name, shape: None, "outside the profile"),
        (FakeContext, "enqueue", lambda self, stream: None, "neither shape nor memory"),
        (FakePlan, "context", None, "a byte too small"),
    ],
)
def test_a_mistake_that_is_accepted_is_told(
    owner: Any, name: str, lenient: Any, words: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = getattr(owner, name)
    if lenient is None:

        def lenient(plan: FakePlan, profile: int, stream: int, scratch: int, size: int) -> Any:
            return plain(plan, profile, stream, scratch, size + 1)

    monkeypatch.setattr(owner, name, lenient)
    found = openings.mistakes_are_refused(lab.subject)
    assert found.found == "refuted" and words in found.measured and ";" not in found.measured
    assert not lab.device.live


def wait_costs(lab: Lab, monkeypatch: pytest.MonkeyPatch, wall: float, cpu: float) -> None:
    plain = FakeDevice.wait

    def wait(device: FakeDevice) -> None:
        plain(device)
        lab.wall.now += wall
        lab.cpu.now += cpu

    monkeypatch.setattr(FakeDevice, "wait", wait)


@pytest.mark.parametrize(
    ("wall", "cpu", "found"),
    [
        (1e-2, 1e-3, "confirmed"),
        (1e-2, 1e-2, "refuted"),
        (1e-4, 1e-4, "undecided"),
    ],
)
def test_waiting_that_computes_is_seen(
    wall: float, cpu: float, found: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_costs(lab, monkeypatch, wall, cpu)
    outcome = pace.waiting_computes_nothing(lab.subject)
    assert outcome.found == found, outcome
    assert (
        f"in {2e4 * wall:.1f} ms of waiting, {2e4 * cpu:.1f} ms were computed" in outcome.measured
    )


def steps_cost(lab: Lab, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    """A decode step takes so long, by the tokens of its first row."""

    def passes(context: FakeContext) -> None:
        start = int(lies_at(context, contract.WRITE_INDICES, np.int64)[0])
        lab.wall.now += seconds(start)

    after_each_run(monkeypatch, passes)


@pytest.mark.parametrize(
    ("seconds", "bandwidth", "found"),
    [
        (lambda start: 1e-3, 1e8, "confirmed"),
        (lambda start: 1e-3 if start > 40 else 5e-4, 1e8, "refuted"),
        (lambda start: 1e-3, None, "undecided"),
        (lambda start: 1e-3, 1e12, "undecided"),  # what takes the time is something else
    ],
)
def test_a_step_that_is_faster_with_short_rows_is_seen(
    seconds: Any, bandwidth: float | None, found: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.bandwidth = bandwidth
    steps_cost(lab, monkeypatch, seconds)
    outcome = pace.a_step_costs_the_capacity(lab.subject)
    assert outcome.found == found, outcome
    assert "1000 us with rows of 43" in outcome.measured


@pytest.mark.parametrize(
    ("times", "found"), [(1.1, "confirmed"), (4.1, "refuted"), (8.1, "undecided")]
)
def test_a_step_that_reads_keys_for_each_query_head_is_seen(
    times: float, found: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has four query heads a key head; reading the cache once takes a millisecond."""
    config = lab.plan().config
    cache = 3 * 64 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    lab.bandwidth = cache * 1e3
    steps_cost(lab, monkeypatch, lambda start: times * 1e-3)
    outcome = pace.shared_keys_come_from_the_l2_cache(lab.subject)
    assert outcome.found == found, outcome
    assert "1000 us at the data sheet's bandwidth, 4 times as long" in outcome.measured


def test_an_engine_with_pages_is_another_matter(lab: Lab) -> None:
    lab.record = replace(lab.record, options=replace(lab.record.options, attention="paged"))
    for probe in (pace.a_step_costs_the_capacity, openings.memory_is_summed_beforehand):
        assert probe(lab.subject).found == "undecided"
    assert not lab.openings
