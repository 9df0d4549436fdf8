"""smoke.md: on one page what ran, what differed, and which facts hold, from the records alone."""

import math
from collections.abc import Iterator
from typing import Any

from nemo_trt.acceptance.words import one_line, share, small, table

from .facts import FACTS, OF_BUILDS

_HEADLINES = {
    "pass": "**PASS.** The small engine was built, ran, and agrees with transformers.",
    "fail": "**FAIL.** Engines are not to be trusted here; the real one is not built.",
    "skip": "**INCOMPLETE.** Nothing failed, but not everything could be run here.",
}
_WORDS = {"pass": "pass", "fail": "**FAIL**", "skip": "could not run here", "not run": "not run"}
_FACTS = {fact.name: fact for fact in FACTS}


def smoke_page(data: dict[str, Any]) -> str:
    """The text of smoke.md.

    Args:
        data: see `nemo_trt.acceptance.report_folder.report_data`; steps of other
            stages are left out.
    """
    steps = [step for step in data["steps"] if step["stage"] == "smoke"]
    outcomes = [
        {**one, "engine": step["facts"]["engine"]}
        for step in steps
        for one in step["facts"].get("outcomes", ())
    ]
    parts = [
        f"# Smoke for {data['gpu']}",
        *_verdict(steps),
        *_refuted(outcomes),
        "## What ran",
        _ran(steps),
        *_differed(steps),
        "## Facts",
        *_facts(steps, outcomes),
        _versions(data),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(steps: list[dict[str, Any]]) -> Iterator[str]:
    verdicts = {step["verdict"] for step in steps}
    overall = "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "skip"
    yield _HEADLINES[overall]
    lines = [
        f"- {step['subject']}, {_WORDS[step['verdict']]}: {one_line(step['reason'])}"
        for step in steps
        if step["verdict"] != "pass"
    ]
    if lines:
        yield "\n".join(lines)


def _refuted(outcomes: list[dict[str, Any]]) -> Iterator[str]:
    lines = []
    for one in outcomes:
        if one["found"] != "refuted":
            continue
        fact = _FACTS[one["fact"]]
        consequence = "**This fails the smoke.**" if one["wrong"] else "Answers are not touched."
        lines.append(
            f"- **REFUTED {fact.name}** on {one['engine']}: {fact.says} {consequence} "
            f"Measured: {one['measured']}. To do: {fact.refuted} Then correct {fact.page}, "
            f'"{fact.section}", and report this page.'
        )
    if lines:
        yield "## Refuted"
        yield "\n".join(lines)


def _ran(steps: list[dict[str, Any]]) -> str:
    rows = []
    for step in steps:
        if not step["facts"].get("ran"):
            rows.append((step["subject"], "", _WORDS[step["verdict"]], "", ""))
        for one in step["facts"].get("ran", ()):
            seconds = "" if one["seconds"] is None else f"{one['seconds']:.1f} s"
            rows.append(
                (step["subject"], one["what"], _WORDS[step["verdict"]], seconds, one["measured"])
            )
    return table(("of", "what", "", "time", "measured"), rows, "lllrl")


def _differed(steps: list[dict[str, Any]]) -> Iterator[str]:
    rows = []
    for step in steps:
        judged = step["facts"].get("validation")
        if not judged:
            continue
        cases, limits = judged["cases"], judged["limits"]
        failed = [case["name"] for case in cases if case["failures"]]

        def worst(figure: str, cases: list[dict[str, Any]] = cases) -> Any:
            found = [(float(case[figure]), case[figure]) for case in cases]
            return max(found, key=lambda one: (math.isnan(one[0]), one[0]))[1]

        rows.append(
            (
                step["subject"],
                f"**FAIL**: {', '.join(failed)}" if failed else f"{len(cases)} cases pass",
                f"{small(worst('max_relative_l2'))} ({limits['max_relative_l2']:.1e})",
                f"{small(worst('max_kl'))} ({limits['max_kl']:.1e})",
                share(min((case["top1"] for case in cases), key=float)),
            )
        )
    if rows:
        yield "## What differed"
        yield "From transformers' logits; the worst of all cases, its limit in brackets."
        yield table(("of", "cases", "rel L2", "KL", "top-1"), rows, "llrrr")


def _facts(steps: list[dict[str, Any]], outcomes: list[dict[str, Any]]) -> Iterator[str]:
    order = ("refuted", "undecided", "confirmed")
    rows = [
        (one["fact"], _FACTS[one["fact"]].says, _shown(one), one["engine"], one["measured"])
        for one in sorted(outcomes, key=lambda one: order.index(one["found"]))
    ]
    if rows:
        yield table(("", "the fact", "is", "on", "measured"), rows, "lllll")
    counts = {found: sum(one["found"] == found for one in outcomes) for found in order}
    yield ", ".join(f"{count} {found}" for found, count in counts.items()) + "."
    missing = [fact.name for fact in FACTS if fact.name not in {one["fact"] for one in outcomes}]
    if missing:
        ends = missing[0] if len(missing) == 1 else f"{missing[0]} to {missing[-1]}"
        needs = "an engine on its GPU" if missing[0] != OF_BUILDS[0].name else "a build"
        yield f"Not probed: {ends}, which need {needs}."


def _shown(outcome: dict[str, Any]) -> str:
    if outcome["found"] == "refuted":
        return "**REFUTED**"
    return "not decided" if outcome["found"] == "undecided" else "confirmed"


def _versions(data: dict[str, Any]) -> str:
    versions, machine = data["versions"], data["machine"]
    gpus = ", ".join(gpu["name"] for gpu in machine.get("gpus", ())) or "no GPU"
    names = ("nemo-trt", "python", "tensorrt", "tensorrt-rtx", "cuda-python", "torch", "driver")
    said = ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))
    return f"{gpus}; {said}. Written {data['written_at']}."
