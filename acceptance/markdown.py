"""report.md: what a person reads first, from the data of report.json alone."""

from collections.abc import Iterator
from typing import Any

from .words import num_bytes, number, one_line, share, small, table

_HEADLINES = {
    "pass": "**PASS.** Every essential step passed.",
    "fail": "**FAIL.**",
    "incomplete": "**INCOMPLETE.** Nothing failed, but not everything could be run here.",
}


def markdown(data: dict[str, Any]) -> str:
    """The text of report.md."""
    parts = [
        f"# Acceptance of {data['checkpoint']} for {data['gpu']}",
        *_verdict(data),
        "## Steps",
        _steps(data["steps"]),
        *_plans(data["steps"]),
        *_validations(data["steps"]),
        *_benches(data["steps"]),
        *_plots(data),
        *_versions(data),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(data: dict[str, Any]) -> Iterator[str]:
    if not data["finished"]:
        yield "**UNFINISHED.** The run has not come to its end; the same command goes on with it."
    if data["finished"] or data["verdict"] == "fail":
        yield _HEADLINES[data["verdict"]]
    wrong = [step for step in data["steps"] if step["verdict"] in ("fail", "skip", "not run")]
    lines = [
        f"- {'failed' if step['verdict'] == 'fail' else _WORDS[step['verdict']]}: "
        f"{step['stage']}, {step['subject']}: {one_line(step['reason'])}"
        for step in wrong
    ]
    if lines:
        yield "\n".join(lines)
    yield (
        f"Precisions: {', '.join(data['precisions'])}. Written {data['written_at']} by nemo-trt "
        f"{data['versions'].get('nemo-trt', '')}."
    )


_WORDS = {"pass": "pass", "fail": "**FAIL**", "skip": "skipped", "not run": "not run"}


def _steps(steps: list[dict[str, Any]]) -> str:
    rows = []
    for step in steps:
        done = step["verdict"] in ("pass", "fail") and step["started_at"]
        rows.append(
            (
                step["stage"],
                step["subject"],
                _WORDS[step["verdict"]],
                f"{step['seconds']:.1f} s" if done else "",
                num_bytes(step["peak_rss_bytes"]) if done else "",
                one_line(step["reason"] or step["why"]),
            )
        )
    return table(("stage", "of", "verdict", "time", "peak memory", "why"), rows, "lllrrl")


def _plans(steps: list[dict[str, Any]]) -> Iterator[str]:
    planned = []
    for step in _passed(steps, "plan"):
        facts = step["facts"]
        planned.append(
            (
                step["subject"],
                f"{facts['max_batch']} x {facts['max_seq_len']:,}",
                num_bytes(facts["weight_bytes"]),
                num_bytes(facts["kv_bytes"]),
                num_bytes(facts["free_bytes"]),
                f"{facts['floor_ms']:.2f} ms",
            )
        )
    if planned:
        yield "## Plan"
        yield table(
            ("engine", "rows x tokens", "weights", "KV cache", "free", "least step"),
            planned,
            "lrrrrr",
        )
    built = []
    for step in _passed(steps, "build"):
        facts = step["facts"]
        built.append(
            (
                facts["engine"],
                f"{facts['toolkit']} {facts['toolkit_version']}",
                num_bytes(facts["plan_bytes"]),
                f"{facts['build_s']:.1f} s",
                num_bytes(facts["build_peak_rss_bytes"]),
            )
        )
    if built:
        yield "## Engines"
        yield table(("engine", "compiled by", "plan", "build", "peak memory"), built, "llrrr")


def _validations(steps: list[dict[str, Any]]) -> Iterator[str]:
    judged = [s for s in steps if s["stage"] == "validate" and s["facts"].get("cases")]
    if judged:
        yield "## Validation"
        yield (
            "Logits beside those of transformers' own model; each number is the worst of its case."
        )
    for step in judged:
        facts = step["facts"]
        yield f"### {step['subject']}"
        rows = [
            (
                case["name"],
                str(case["num_positions"]),
                small(case["max_abs"]),
                small(case["max_relative_l2"]),
                small(case["max_kl"]),
                share(case["top1"]),
                share(case["top5"]),
                "**FAIL**" if case["failures"] else "pass",
            )
            for case in facts["cases"]
        ]
        limits = facts["limits"]
        rows.append(
            (
                "*limit*",
                "",
                "",
                f"*{limits['max_relative_l2']:.1e}*",
                f"*{limits['max_kl']:.1e}*",
                f"*{share(limits['min_top1'])}*",
                f"*{share(limits['min_top5'])}*",
                "",
            )
        )
        headings = ("case", "positions", "max abs", "rel L2", "KL", "top-1", "top-5", "")
        yield table(headings, rows, "lrrrrrrl")
        perplexity = facts["perplexity"]
        yield (
            f"Perplexity {number(perplexity['engine'])}, reference "
            f"{number(perplexity['reference'])}. Computed in "
            f"{facts['backend']['compute_precision']}, reference in {facts['reference']['dtype']}. "
            f"Every position: [{facts['every_position']}]({facts['every_position']})."
        )
        failures = [f"- {case['name']}: {w}" for case in facts["cases"] for w in case["failures"]]
        if failures:
            yield "\n".join(failures)


def _benches(steps: list[dict[str, Any]]) -> Iterator[str]:
    measured = list(_passed(steps, "bench"))
    if measured:
        yield "## Speed"
    for step in measured:
        facts = step["facts"]
        yield f"### {step['subject']}"
        rows = [
            ("prefill", f"{one['tokens']:,}", "1", f"{one['step_s'] * 1e3:.1f} ms",
             f"{one['tokens_per_s']:,.0f}", "", "")
            for one in facts["prefill"]
        ]  # fmt: skip
        rows += [
            ("decode", f"{one['tokens']:,}", str(one["rows"]), f"{one['step_s'] * 1e3:.1f} ms",
             f"{one['tokens_per_s']:,.1f}", *_beside_bound(one["floor_s"], one["step_s"]))
            for one in facts["decode"]
        ]  # fmt: skip
        headings = ("", "tokens", "rows", "step", "tokens/s", "lower bound", "of its speed")
        yield table(headings, rows, "lrrrrrr")
        bandwidth = facts["bandwidth_bytes_per_s"]
        yield (
            f"Loaded in {facts['load_s']:.2f} s; computes in {facts['computes_in']}; on "
            f"{step['machine']}. The lower bound of a step is all bytes that it reads over "
            + (f"{bandwidth / 1e9:,.1f} GB/s" if bandwidth else "the memory's bandwidth")
            + f" ({facts['bandwidth_source']})."
        )


def _beside_bound(floor_s: float | None, step_s: float) -> tuple[str, str]:
    if floor_s is None:
        return "", ""
    return f"{floor_s * 1e3:.1f} ms", f"{floor_s / step_s:.0%}"


def _plots(data: dict[str, Any]) -> Iterator[str]:
    for step in data["steps"]:
        if plots := step["facts"].get("plots"):
            yield "## Plots"
            yield from (f"![{plot['title']}]({plot['file']})" for plot in plots)


def _versions(data: dict[str, Any]) -> Iterator[str]:
    if not data["versions"]:
        return
    yield "## Versions"
    rows = [(name, version or "none") for name, version in data["versions"].items()]
    machine = data["machine"]
    rows += [
        ("system", machine["system"]),
        ("processor", f"{machine['processor']}, {machine['threads']} threads"),
        ("memory", num_bytes(machine["memory_bytes"])),
    ]
    gpus = [f"{gpu['name']}, sm_{gpu['sm']}, {gpu['memory']}" for gpu in machine["gpus"]]
    rows.append(("GPU", "; ".join(gpus) or "none"))
    yield table(("what", "version"), rows, "ll")
    others = sorted({s["code"] for s in data["steps"]} - {data["versions"]["nemo-trt"]})
    if others:
        yield f"Steps that were kept ran with nemo-trt {', '.join(others)}."


def _passed(steps: list[dict[str, Any]], stage: str) -> Iterator[dict[str, Any]]:
    return (step for step in steps if step["stage"] == stage and step["verdict"] == "pass")
