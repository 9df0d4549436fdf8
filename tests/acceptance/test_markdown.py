"""report.md: every number in its column, in units that a person reads."""

import pytest

from nemo_trt.acceptance.markdown import markdown
from nemo_trt.acceptance.words import num_bytes, number, share, small

from .stage_facts import FACTS

pytestmark = pytest.mark.unit


def test_every_number_has_its_column_and_unit() -> None:
    common = {"verdict": "pass", "reason": "", "why": "", "started_at": "2026-01-01", "code": "1"}
    common |= {"peak_rss_bytes": 1_500_000, "machine": "here", "seconds": 2.25}
    steps = [
        {"stage": stage, "step": stage, "subject": f"the {stage}", "facts": facts, **common}
        for stage, facts in FACTS.items()
    ]
    found = markdown({
        "checkpoint": "nemo", "gpu": "l4", "finished": True, "verdict": "pass", "steps": steps,
        "precisions": ["bf16", "fp8"], "written_at": "today",
        "versions": {"nemo-trt": "2", "torch": None},
        "machine": {
            "system": "Linux", "processor": "a CPU", "threads": 2, "memory_bytes": 8 * 10**9,
            "gpus": [{"name": "L4", "sm": 89, "memory": "24 GB"}],
        },
    })  # fmt: skip
    lines = found.splitlines()
    for line in (
        "# Acceptance of nemo for l4",
        "Precisions: bf16, fp8. Written today by nemo-trt 2.",
        "| plan | the plan | pass | 2.2 s | 1.5 MB |  |",
        "| the plan | 3 x 4,096 | 24.5 GB | 2 GB | 1000 kB | 12.50 ms |",
        "| l4-bf16 | tensorrt-rtx 1.2 | 3 GB | 61.0 s | 8 GB |",
        "| whole prefill | 7 | 5.0e-01 | 1.0e-02 | 2.0e-03 | 99.9% | 87.5% | **FAIL** |",
        "| *limit* |  |  | *1.0e-01* | *4.5e-01* | *90.0%* | *80.0%* |  |",
        "- whole prefill: kl must be less",
        "| prefill | 1,024 | 1 | 250.0 ms | 4,096 |  |  |",
        "| decode | 1,920 | 4 | 40.0 ms | 100.0 | 30.0 ms | 75% |",
        "| torch | none |",
        "| memory | 8 GB |",
        "| GPU | L4, sm_89, 24 GB |",
        "Steps that were kept ran with nemo-trt 1.",
    ):
        assert line in lines, line
    assert "Perplexity 12.5000, reference inf." in found
    assert "300.0 GB/s (data sheet of l4)" in found


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, ""), (0, ""), (999, "999 B"), (1000, "1 kB"), (12_340, "12.3 kB"), (123_400, "123 kB"),
     (2_000_000, "2 MB"), (24_500_000_000, "24.5 GB"), (1_500_000_000_000, "1500 GB")],
)  # fmt: skip
def test_bytes_in_decimal_units(count: int | None, text: str) -> None:
    assert num_bytes(count) == text


def test_numbers_that_json_lacks_stay_as_they_are() -> None:
    assert (small("inf"), share("nan"), number("inf")) == ("inf", "nan", "inf")
