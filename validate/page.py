"""A verdict as one HTML file that needs nothing else: tables, plots, the worst tokens in words."""

import html
import io
import math
from collections.abc import Iterable
from typing import Any

from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.figures import BLUE, GREEN, GREY, ORANGE, RED, STYLE, new_figure

from .explain.explanation import Explanation
from .report import CaseReport, Choice, Disagreement, Report

_SHOWN = 12
"""Positions in the table of the worst tokens."""
_LEAST = 1e-12
"""Errors of exactly 0 stand here on a logarithmic axis."""
_COLUMNS = (
    ("max abs", "max_abs", None),
    ("relative L2", "max_relative_l2", "max_relative_l2"),
    ("KL, worst", "max_kl", "max_kl"),
    ("KL, mean", "mean_kl", "mean_kl"),
    ("top-1", "top1", "min_top1"),
    ("top-5", "top5", "min_top5"),
)
_CSS = """
:root { color-scheme: light; --line: #e5e7eb; --dim: #6b7280; }
body { font: 15px/1.5 system-ui, sans-serif; color: #111827; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.verdict { padding: .1rem .6rem; border-radius: .3rem; color: #fff; background: #059669; }
.fail { background: #dc2626; } li.bad, td.bad { color: #b91c1c; } .dim { color: var(--dim); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .text td, .text th { text-align: left; vertical-align: top; }
.limits td { color: var(--dim); } svg { max-width: 100%; height: auto; }
code { font-size: .88em; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
"""


def page(report: Report, tokenizer: Tokenizer | None) -> str:
    """The HTML of a report.

    Args:
        tokenizer: turns the worst tokens' ids into words; without one they stay numbers.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    parts = [
        _head(report),
        _cases(report),
        "<h2>By position</h2><p>Every compared position of every case: the error of its logits, "
        "and how far its next-token distribution is from the reference's. Dashed: the limit.</p>",
        _svg(_by_position, report),
    ]
    if report.explanation:
        parts.append(_explained(report.explanation))
    parts.append(_worst(report, tokenizer))
    title = f"nemo-trt validate: {report.verdict}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style><body>{''.join(parts)}</body></html>\n"
    )


def _head(report: Report) -> str:
    perplexity, reference = report.perplexity, report.reference
    failures = [
        *(f"{case.name}: {words}" for case in report.cases for words in case.failures),
        *report.failures,
    ]
    mark = "verdict fail" if report.verdict == "fail" else "verdict"
    return (
        f'<h1>Validation <span class="{mark}">{report.verdict.upper()}</span></h1>'
        f"<p>Computed in {_text(report.engine['compute_precision'])} by "
        f"{_text(report.engine.get('backend', '?'))}, compared with transformers "
        f"{_text(reference['transformers'])} in {_text(reference['dtype'])} (own noise "
        f"{reference['noise']:.1g}). Weights read by {_text(reference['reader'])}.<br>"
        f"Perplexity {perplexity['engine']:.4f}, reference {perplexity['reference']:.4f}.<br>"
        f'<span class="dim">Bundle {_text(report.bundle_id)}</span></p>'
        + (_sentences(report.explanation) if report.explanation else "")
        + (_failures(failures) if failures else "")
    )


def _failures(failures: list[str]) -> str:
    lines = "".join(f'<li class="bad">{_text(words)}</li>' for words in failures)
    return f"<details><summary>{len(failures)} limits not met</summary><ul>{lines}</ul></details>"


def _sentences(explanation: Explanation) -> str:
    return "".join(f"<p><strong>{_text(words)}</strong></p>" for words in explanation.sentences())


def _cases(report: Report) -> str:
    heads = "".join(f"<th>{name}</th>" for name in ("case", "positions", *(c[0] for c in _COLUMNS)))
    rows = "".join(_case(case, report.limits) for case in report.cases)
    limits = "".join(
        f"<td>{_number(column, report.limits[limit]) if limit in report.limits else ''}</td>"
        for _, column, limit in _COLUMNS
    )
    return (
        f'<h2>Cases</h2><div class="scroll"><table><tr>{heads}</tr>{rows}'
        f'<tr class="limits"><td>limit</td><td></td>{limits}</tr></table></div>'
    )


def _case(case: CaseReport, limits: dict[str, float]) -> str:
    cells = "".join(f"<td>{_number(name, getattr(case, name))}</td>" for _, name, _ in _COLUMNS)
    bad = ' class="bad"' if case.failures else ""
    return f"<tr><td{bad}>{_text(case.name)}</td><td>{len(case.positions)}</td>{cells}</tr>"


def _explained(explanation: Explanation) -> str:
    return (
        f"<h2>By layer</h2><p>{_text(explanation.sequence)}, {explanation.tokens} tokens from "
        f"position {explanation.start} on, by {_text(explanation.runner)}. Each place is given the "
        "reference's values, so that its error is its own; the line shows layers that feed each "
        f"other.</p>{_svg(_by_layer, explanation)}"
    )


def _worst(report: Report, tokenizer: Tokenizer | None) -> str:
    every = [(one, case.name) for case in report.cases for one in case.worst]
    every.sort(key=lambda pair: -pair[0].kl)
    seen: set[tuple[str, int]] = set()
    rows: list[str] = []
    for one, case in every:
        if (one.sequence, one.position) not in seen and len(rows) < _SHOWN:
            seen.add((one.sequence, one.position))
            rows.append(_disagreement(one, case, tokenizer))
    heads = "".join(f"<th>{name}</th>" for name in ("where", "KL", "text", "reference", "engine"))
    return (
        "<h2>The worst tokens</h2><p>What each expects to come next.</p>"
        f'<div class="scroll"><table class="text"><tr>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _disagreement(one: Disagreement, case: str, tokenizer: Tokenizer | None) -> str:
    text = tokenizer.decode(list(one.before)) if tokenizer else " ".join(map(str, one.before))
    return (
        f"<tr><td>{_text(one.sequence)}, position {one.position}<br>"
        f'<span class="dim">{_text(case)}</span></td><td>{one.kl:.1e}</td>'
        f"<td><code>…{_text(text)}</code></td><td>{_choices(one.reference, tokenizer)}</td>"
        f"<td>{_choices(one.engine, tokenizer) or 'not finite'}</td></tr>"
    )


def _choices(choices: Iterable[Choice], tokenizer: Tokenizer | None) -> str:
    def words(token: int) -> str:
        return tokenizer.decode([token]).replace("\n", "\u23ce") if tokenizer else str(token)

    return "<br>".join(f"<code>{_text(words(one))}</code> {chance:.1%}" for one, chance in choices)


def _by_position(report: Report, figure: Any, axes: Any) -> None:
    colours = (BLUE, GREEN, ORANGE, GREY, "#7c3aed", "#0891b2", "#db2777", "#65a30d")
    panels = (("relative_l2", "max_relative_l2", "relative L2"), ("kl", "max_kl", "KL, nats"))
    for axis, (metric, limit, words) in zip(axes[0], panels, strict=True):
        for index, case in enumerate(report.cases):
            pairs = zip(case.positions, case.per_position.get(metric, ()), strict=False)
            points = [(at, value) for (_, at), value in pairs if math.isfinite(value)]
            axis.plot(
                [at for at, _ in points],
                [max(value, _LEAST) for _, value in points],
                "o^s"[index // len(colours) % 3],
                color=colours[index % len(colours)],
                markersize=3,
                alpha=0.6,
                markeredgewidth=0,
                label=case.name if axis is axes[0][0] else None,
            )
        axis.axhline(report.limits[limit], color=RED, linewidth=1, linestyle="--")
        axis.set_xscale("symlog", linthresh=64)
        axis.set_xlim(left=-2)
        axis.set_yscale("log")
        axis.set_xlabel("position in the context")
        axis.set_title(words)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8, markerscale=2)


def _by_layer(explanation: Explanation, figure: Any, axes: Any) -> None:
    axis = axes[0][0]
    layers = range(len(explanation.free))
    worst = [
        max(
            (one for one in explanation.places if one.part == layer),
            key=lambda one: one.position_error / one.limit,
        )
        for layer in layers
    ]
    own, limits = [one.position_error for one in worst], [one.limit for one in worst]
    for values, style, colour, words in (
        (own, "o", BLUE, "worst place of the layer, fed with the reference's values"),
        (explanation.free, "-", ORANGE, "output, layers that feed each other"),
        (limits, "--", RED, "limit of that place"),
    ):
        finite = [max(value, _LEAST) if math.isfinite(value) else math.nan for value in values]
        axis.plot(layers, finite, style, color=colour, markersize=4, label=words)
    axis.set_yscale("log")
    axis.set_xlabel("layer")
    axis.set_title("relative L2 of the worst position")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _svg(draw: Any, data: Report | Explanation) -> str:
    import matplotlib as mpl

    with mpl.rc_context({**STYLE, "svg.hashsalt": "nemo-trt"}):
        figure, axes = new_figure(3.6, 1, 2 if isinstance(data, Report) else 1)
        draw(data, figure, axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _number(column: str, value: float) -> str:
    return f"{value:.1%}" if column.startswith("top") else f"{value:.1e}"


def _text(value: object) -> str:
    return html.escape(str(value))
