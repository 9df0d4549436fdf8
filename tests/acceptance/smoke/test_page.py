"""The smoke's page: refuted facts first and loudly, each with what to do; what could not run."""

import re
from dataclasses import asdict
from typing import Any

import pytest

from nemo_trt.acceptance.smoke.fact import Outcome, confirmed, refuted, undecided
from nemo_trt.acceptance.smoke.facts import FACTS, OF_BUILDS, OF_ENGINES
from nemo_trt.acceptance.smoke.page import smoke_page
from nemo_trt.acceptance.smoke.probing import probe_all, wrong
from nemo_trt.errors import MachineError
from nemo_trt.progress import Silent

pytestmark = pytest.mark.unit


def of(facts: Any, **found: Outcome) -> list[dict[str, Any]]:
    """All confirmed but those that are given."""
    return [{"fact": f.name, **asdict(found.get(f.name, confirmed("as said")))} for f in facts]


def step(part: str, verdict: str = "pass", reason: str = "", **facts: Any) -> dict[str, Any]:
    if verdict in ("pass", "fail"):
        facts = {"ran": [{"what": "open", "seconds": 1.25, "measured": "x | y"}]} | facts
    if "outcomes" in facts:
        facts["engine"] = "h100-bf16"
    return {
        "stage": "smoke", "subject": f"small {part}", "verdict": verdict, "reason": reason,
        "facts": facts,
    }  # fmt: skip


def page(*steps: dict[str, Any]) -> str:
    machine = {"gpus": [{"name": "NVIDIA H100"}]}
    return smoke_page(
        {"gpu": "h100", "steps": [*steps, {"stage": "plan"}], "versions": {"tensorrt": "11.4"},
         "machine": machine, "written_at": "now"}
    )  # fmt: skip


def test_everything_that_passed() -> None:
    text = page(
        step("bundle"),
        step("engine", outcomes=of(OF_BUILDS)),
        step("session", outcomes=of(OF_ENGINES)),
    )
    assert "**PASS.**" in text and "REFUTED" not in text and "Not probed" not in text
    assert f"0 refuted, 0 undecided, {len(FACTS)} confirmed." in text
    assert "| small session | open | pass | 1.2 s | x \\| y |" in text
    assert text.rstrip().endswith("NVIDIA H100; tensorrt 11.4. Written now.")


def test_a_refuted_fact_stands_first_with_what_to_do_and_where_the_documentation_says_it() -> None:
    outcomes = of(
        OF_ENGINES,
        F13=refuted("20.0 MiB each"),
        F8=refuted("half of them differ", wrong=True),
        F12=undecided("too short"),
    )
    text = page(
        step("bundle"),
        step("engine", outcomes=of(OF_BUILDS)),
        step("session", "fail", "; ".join(wrong(outcomes)), outcomes=outcomes),
    )
    assert text.index("**FAIL.**") < text.index("## Refuted") < text.index("## What ran")
    harmless = next(line for line in text.splitlines() if "REFUTED F13" in line)
    assert "Answers are not touched. Measured: 20.0 MiB each. To do: Put the number" in harmless
    assert 'Then correct docs/tensorrt.md, "A session"' in harmless
    assert "**This fails the smoke.** Measured: half of them differ." in text
    assert "- small session, **FAIL**: F8: half of them differ" in text
    assert f"2 refuted, 1 undecided, {len(FACTS) - 3} confirmed." in text
    order = re.findall(r"^\| (F\d+) \|", text, re.M)
    assert order[:3] == ["F8", "F13", "F12"]


def test_what_could_not_run_here_has_its_reason() -> None:
    text = page(
        step("bundle"),
        step("engine", outcomes=of(OF_BUILDS)),
        step("session", "skip", "no GPU\nhere"),
    )
    assert "**INCOMPLETE.**" in text and "**PASS" not in text
    assert "- small session, could not run here: no GPU here" in text
    assert "| small session |  | could not run here |  |  |" in text
    assert "Not probed: F5 to F19, which need an engine on its GPU." in text


def test_without_a_build_nothing_is_probed() -> None:
    text = page(step("bundle"), step("engine", "skip", "no toolkit"), step("session", "skip", ""))
    assert "Not probed: F1 to F19, which need a build." in text and "| F1 |" not in text


def test_what_differed_is_the_worst_of_all_cases_beside_its_limit() -> None:
    case = {"name": "runner", "max_relative_l2": 1e-3, "max_kl": 1e-6, "top1": 1.0, "failures": []}
    worse = {**case, "name": "ragged batch", "max_relative_l2": "nan", "failures": ["too far"]}
    worst = {**case, "max_relative_l2": 2e-3, "top1": 0.9}
    limits = {"max_relative_l2": 0.35, "max_kl": 0.45}
    text = page(step("bundle", validation={"cases": [case, worst], "limits": limits}))
    assert "| small bundle | 2 cases pass | 2.0e-03 (3.5e-01) | 1.0e-06 (4.5e-01) | 90.0% |" in text
    text = page(step("bundle", "fail", validation={"cases": [case, worse], "limits": limits}))
    assert "| **FAIL**: ragged batch | nan (3.5e-01)" in text


def test_a_probe_that_breaks_off_fails_the_smoke_and_the_others_still_look(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks(subject: object) -> Outcome:
        raise MachineError("CUDA's cudaMalloc failed: out of memory.")

    facts = [
        type(FACTS[0])(name=name, says="", matters="", probe=probe, refuted="", section="")
        for name, probe in (("F1", breaks), ("F2", lambda subject: confirmed(f"of {subject}")))
    ]
    found = probe_all(facts, "it", Silent())
    assert wrong(found) == ["F1: the probe broke off: CUDA's cudaMalloc failed: out of memory."]
    assert found[1] == {"fact": "F2", "found": "confirmed", "measured": "of it", "wrong": False}
    assert "F2 confirmed: of it" in capsys.readouterr().out
