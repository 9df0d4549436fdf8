"""Draws the report: errors of logits, decode rates beside their upper bound, time of each step."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_trt.figures import BLUE, GREEN, GREY, ORANGE, RED, STYLE, WIDTH, new_figure

from .words import num_bytes

_STAGE_COLOURS = {
    "doctor": GREY,
    "plan": GREY,
    "export": "#7c3aed",
    "build": ORANGE,
    "validate": BLUE,
    "bench": GREEN,
}
_FLOOR = 1e-12  # errors of exactly 0 stand here on a logarithmic axis
_METRICS = (
    ("relative_l2", "max_relative_l2", "relative error of the logits, L2"),
    ("kl", "max_kl", f"KL divergence, nats; less than {_FLOOR:g} stands there"),
)


def draw(data: dict[str, Any], report_folder: Path) -> list[dict[str, str]]:
    """Draw what `report.json`'s data gives cause for, into `report_folder`/plots.

    Returns:
        File (relative to the report's folder) and title of every plot.
    """
    import matplotlib as mpl

    (report_folder / "plots").mkdir(exist_ok=True)
    plots: tuple[tuple[str, str, Callable[..., Any]], ...] = (
        ("logits", "Logits beside transformers': each position of each case", _logits),
        ("decode", "Decoded tokens a second, by rows that decode together", _decode),
        ("time", "Time of each step", _time),
    )
    drawn = []
    with mpl.rc_context(STYLE):
        for name, title, plot in plots:
            figure = plot(data, report_folder)
            if figure is None:
                continue
            figure.suptitle(title, x=0.01, ha="left", fontsize=11)
            file = f"plots/{name}.png"
            figure.savefig(report_folder / file, dpi=140)
            drawn.append({"file": file, "title": title})
    return drawn


def _logits(data: dict[str, Any], report_folder: Path) -> Any:
    """A row of panels for each validation, a panel for each metric, a line for each case."""
    judged = [
        step for step in data["steps"] if step["stage"] == "validate" and step["facts"].get("cases")
    ]
    if not judged:
        return None
    figure, axes = new_figure(0.6 + 2.5 * len(judged), len(judged), len(_METRICS))
    for row, step in zip(axes, judged, strict=True):
        file = report_folder / step["facts"]["every_position"]
        cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
        for column, (metric, limit, words) in enumerate(_METRICS):
            _errors(row[column], cases, metric, step["facts"]["limits"][limit])
            row[column].set_xlabel(words)
            if column:
                row[column].tick_params(labelleft=False)
        row[0].set_title(step["subject"])
    return figure


def _errors(axes: Any, cases: Sequence[dict[str, Any]], metric: str, limit: float) -> None:
    spread = np.random.default_rng(0)
    beyond = 30 * limit  # where errors stand that no axis can show
    for line, case in enumerate(cases):
        values = np.array([float(value) for value in case["per_position"].get(metric, ())])
        if not len(values):
            axes.text(limit, line, "no logits ", color=RED, ha="right", va="center")
            continue
        finite = np.maximum(values[np.isfinite(values)], _FLOOR)
        height = line + spread.uniform(-0.18, 0.18, len(finite))
        axes.plot(finite, height, ".", color=BLUE, alpha=0.35, markersize=4, markeredgewidth=0)
        if len(finite) < len(values):
            axes.text(beyond, line, "not finite", color=RED, ha="center", va="center", fontsize=8)
            continue
        worst = finite.max()
        colour = RED if worst > limit else BLUE
        axes.plot([worst], [line], "|", color=colour, markersize=13, markeredgewidth=2)
    axes.axvline(limit, color=ORANGE, linewidth=1.2, linestyle="--")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, limit / 10), max(high, 100 * limit))
    axes.text(limit, -0.62, f"limit {limit:g} ", color=ORANGE, ha="right", va="center", fontsize=8)
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.95)
    axes.grid(visible=False, axis="y")


def _decode(data: dict[str, Any], _: Path) -> Any:
    """A panel for each backend: rates measured and at the lower bound of a step, a colour for each
    cached length."""
    measured = [
        step for step in data["steps"] if step["stage"] == "bench" and step["facts"].get("decode")
    ]
    if not measured:
        return None
    columns = min(2, len(measured))
    lines = -(-len(measured) // columns)
    figure, grid = new_figure(0.6 + 3.1 * lines, lines, columns)
    if columns == 1:
        figure.set_figwidth(0.6 * WIDTH)
    panels = list(grid.flat)
    for axes in panels[len(measured) :]:
        axes.set_visible(False)
    for axes, step in zip(panels, measured, strict=False):
        _rates(axes, step["facts"]["decode"])
        axes.set_title(step["subject"])
    return figure


def _rates(axes: Any, decode: Sequence[dict[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    lengths = sorted({one["tokens"] for one in decode})
    colours = itertools.cycle((BLUE, GREEN, ORANGE, GREY))
    for tokens, colour in zip(lengths, colours, strict=False):
        of = [one for one in decode if one["tokens"] == tokens]
        rows = [one["rows"] for one in of]
        rates = [one["tokens_per_s"] for one in of]
        label = f"{tokens:,} tokens cached"
        axes.plot(rows, rates, "o-", color=colour, label=label, markersize=4)
        bounds = [one["rows"] / (one["floor_s"] or float("nan")) for one in of]
        axes.plot(rows, bounds, "--", color=colour, linewidth=1, alpha=0.8)
        above = tokens == lengths[0]
        if not above and tokens != lengths[-1]:
            continue  # numbers between two lines are no longer read
        for x, y in zip(rows, rates, strict=True):
            axes.annotate(
                f"{y:,.0f}" if y >= 100 else f"{y:.1f}",
                (x, y),
                textcoords="offset points",
                xytext=(0, 6 if above else -13),
                ha="center",
                fontsize=8,
                color=colour,
            )
    axes.plot([], [], "--", color=GREY, linewidth=1, label="at the memory's bandwidth")
    every = sorted({one["rows"] for one in decode})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(rows) for rows in every])
    axes.set_xlim(every[0] / 1.3, every[-1] * 1.3)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * (high / low) ** 0.35)  # room for the legend
    axes.set_xlabel("rows")
    axes.set_ylabel("tokens/s, all rows")
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def _time(data: dict[str, Any], _: Path) -> Any:
    """A bar for each step that was done, now or before."""
    done = [step for step in data["steps"] if step["verdict"] in ("pass", "fail")]
    if not done:
        return None
    figure, grid = new_figure(0.9 + 0.3 * len(done), 1, 1)
    axes = grid[0][0]
    longest = max(step["seconds"] for step in done)
    for line, step in enumerate(done):
        colour = RED if step["verdict"] == "fail" else _STAGE_COLOURS.get(step["stage"], GREY)
        axes.barh(line, step["seconds"], color=colour, alpha=0.35 if step["kept"] else 0.85)
        peak = step["peak_rss_bytes"]
        memory = f", peak {num_bytes(peak)}" if peak else ""
        kept = ", done before" if step["kept"] else ""
        failed = ", failed" if step["verdict"] == "fail" else ""
        words = f"{step['seconds']:.1f} s{memory}{kept}{failed}"
        axes.text(step["seconds"] + longest * 0.01, line, words, va="center", fontsize=8)
    axes.set_yticks(range(len(done)), [f"{step['stage']}: {step['subject']}" for step in done])
    axes.set_ylim(len(done) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.6)
    axes.set_xlabel("seconds")
    axes.grid(visible=False, axis="y")
    return figure
