"""What users do with a bundle and the cases of old did not: each fault passed them all.

Seen: every fault of `faults_of_use` passed the validator of before, whose cases asked for every
logit in order, ran three rows from row 0 on, and stood at the end of the context alone.
"""

from pathlib import Path
from typing import Any

import pytest

from . import faults
from .faults_of_use import FAULTS, middle_positions_shifted
from .judge import Judge, failed

pytestmark = pytest.mark.model

CAPACITY = 3000  # so that two depths lie between the start and the end


@pytest.fixture(scope="module")
def judge(tiny: Any) -> Judge:
    return Judge(tiny.checkpoint, tiny.bundle, capacity=CAPACITY)


def test_a_sound_bundle_passes_at_every_depth(tiny: Any, judge: Judge) -> None:
    report = judge(tiny.bundle)
    assert report.verdict == "pass", [(one.name, one.failures) for one in report.cases]
    positions = [p for case in report.cases if case.name == "long position" for p in case.positions]
    assert {name for name, _ in positions} == {"far", "at 2000", "at 1500", "at 300"}
    assert max(p for _, p in positions) == CAPACITY - 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_use_fails_the_case_that_is_there_for_it(
    name: str, tiny: Any, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, expected = FAULTS[name]
    patch(monkeypatch)
    report = judge(tiny.bundle)
    assert report.verdict == "fail"
    assert failed(report) >= expected


def test_positions_in_the_middle_are_judged(tiny: Any, judge: Judge, tmp_path: Path) -> None:
    faulty = faults.copy_with(tiny.bundle, tmp_path / "faulty", graph=middle_positions_shifted)
    assert failed(judge(faulty)) == {"growing cache", "long prefill", "long position"}
