"""Plots: what is drawn of which report, and what is said where they cannot be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.acceptance.plots import draw
from nemo_trt.acceptance.work import report
from nemo_trt.acceptance.work.done import CannotHere
from nemo_trt.progress import Silent

pytestmark = pytest.mark.unit


def step(stage: str, verdict: str = "pass", **facts: Any) -> dict[str, Any]:
    return {
        "stage": stage,
        "subject": f"{stage} of it",
        "verdict": verdict,
        "seconds": 1.5,
        "kept": False,
        "peak_rss_bytes": 10**8,
        "facts": facts,
    }


def drawn(steps: list[dict[str, Any]], folder: Path) -> list[str]:
    return [plot["file"] for plot in draw({"steps": steps}, folder)]


def test_a_report_without_figures_has_only_the_times(tmp_path: Path) -> None:
    assert drawn([step("doctor"), step("validate", "skip")], tmp_path) == ["plots/time.png"]


def test_a_report_of_skips_alone_has_no_plots(tmp_path: Path) -> None:
    assert drawn([step("validate", "skip")], tmp_path) == []


def test_errors_that_are_no_numbers_and_cases_without_logits_are_drawn(tmp_path: Path) -> None:
    cases = [
        {"name": "whole prefill", "per_position": {"relative_l2": [0.0, 0.1], "kl": ["inf", 1e-3]}},
        {"name": "poisoned tail", "per_position": {}},
    ]
    (tmp_path / "every.json").write_text(json.dumps({"cases": cases}))
    limits = {"max_relative_l2": 0.25, "max_kl": 0.05}
    judged = step("validate", "fail", cases=[{}], limits=limits, every_position="every.json")
    assert drawn([judged], tmp_path) == ["plots/logits.png", "plots/time.png"]


def test_rates_of_several_backends_are_drawn(tmp_path: Path) -> None:
    decode = [
        {"tokens": tokens, "rows": rows, "tokens_per_s": 90.0 * rows, "floor_s": 0.01}
        for tokens in (128, 512, 1920)
        for rows in (1, 2)
    ]
    unknown = [one | {"floor_s": None} for one in decode]  # a GPU that the table lacks
    steps = [step("bench", decode=rates) for rates in (decode, decode, unknown)]
    assert drawn(steps, tmp_path) == ["plots/decode.png", "plots/time.png"]


def test_without_matplotlib_the_plots_are_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CannotHere, match=r"matplotlib.*nemo-trt\[plots\]"):
        report.run(report_folder=str(tmp_path), progress=Silent())
