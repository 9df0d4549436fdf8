"""Draws a measurement: latencies as cumulative shares, tokens and requests over time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .run import LoadResult
from .summary import Spread, Summary

_BLUE, _ORANGE, _GREEN, _GREY = "#2563eb", "#ea580c", "#059669", "#6b7280"
_STYLE = {
    "font.size": 9,
    "lines.linewidth": 1.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}


def write_plot(path: Path, result: LoadResult, summary: Summary) -> None:
    """Write a PNG (or what the name's ending says)."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 6, height_ratios=(1, 1))
        answered = [record for record in result.records if record.outcome == "ok"]
        cases: Sequence[tuple[str, list[float], Spread | None]] = (
            (
                "Time to first token",
                [record.ttft_s for record in answered if record.ttft_s is not None],
                summary.ttft_s,
            ),
            (
                "Between tokens",
                [value for record in answered for value in record.itl_s],
                summary.itl_s,
            ),
            (
                "Whole request",
                [record.latency_s for record in answered if record.latency_s is not None],
                summary.latency_s,
            ),
        )
        for column, (title, values, found) in enumerate(cases):
            _shares(figure.add_subplot(grid[0, 2 * column : 2 * column + 2]), title, values, found)
        _tokens_over_time(figure.add_subplot(grid[1, :3]), result, summary)
        _requests_over_time(figure.add_subplot(grid[1, 3:]), result)
        figure.suptitle(_heading(result, summary), x=0.01, ha="left", fontsize=10)
        figure.savefig(path, dpi=140)


def _heading(result: LoadResult, summary: Summary) -> str:
    options = result.options
    load = (
        f"{options.rate:g} requests/s, {options.arrivals}"
        if options.rate
        else f"{options.concurrency} clients"
    )
    return (
        f"{result.server.model} at {options.base_url}: {load}; {len(result.records)} requests in "
        f"{summary.duration_s:.1f} s, {summary.output_tokens_per_s:,.1f} output tokens/s"
    )


def _shares(axes: Any, title: str, values: list[float], found: Spread | None) -> None:
    """An empirical distribution: the share of values up to each."""
    axes.set_title(title)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if found is None:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=_GREY)
        return
    factor, unit = (1000, "ms") if found.max < 2 else (1, "s")
    axes.set_xlabel(unit)
    times = np.sort(np.array(values)) * factor
    axes.step(times, np.arange(1, len(times) + 1) / len(times), where="post", color=_BLUE)
    axes.set_xlim(left=0)
    marks = ((0.5, found.p50, _GREEN), (0.95, found.p95, _ORANGE), (0.99, found.p99, _GREY))
    words = []
    for share, value, colour in marks:
        axes.plot([value * factor], [share], "o", color=colour, markersize=5, zorder=3)
        words.append((f"p{share * 100:.0f}  {_number(value * factor)} {unit}", colour))
    for line, (text, colour) in enumerate(words):
        axes.text(0.97, 0.28 - 0.1 * line, text, transform=axes.transAxes, ha="right", color=colour)


def _tokens_over_time(axes: Any, result: LoadResult, summary: Summary) -> None:
    axes.set_title("Output tokens per second")
    edges = _bins(result.duration_s)
    width = edges[1] - edges[0]
    weights: list[float] = []
    times: list[float] = []
    for record in result.records:
        times += record.chunk_s
        weights += [record.tokens / max(1, len(record.chunk_s))] * len(record.chunk_s)
    rates = np.histogram(times, edges, weights=weights)[0] / width
    axes.stairs(rates, edges, fill=True, color=_BLUE, alpha=0.25)
    axes.stairs(rates, edges, color=_BLUE)
    axes.axhline(summary.output_tokens_per_s, color=_ORANGE, linewidth=1, linestyle="--")
    axes.text(
        edges[-1], summary.output_tokens_per_s, "mean ", color=_ORANGE, ha="right", va="bottom"
    )
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")


def _requests_over_time(axes: Any, result: LoadResult) -> None:
    """Requests on the way, and when some were refused or failed."""
    axes.set_title("Requests on the way")
    starts = [record.intended_s for record in result.records]
    ends = [record.end_s for record in result.records if record.end_s is not None]
    times = np.array([*starts, *ends])
    steps = np.array([1] * len(starts) + [-1] * len(ends))
    order = np.argsort(times, kind="stable")
    axes.step(times[order], np.cumsum(steps[order]), where="post", color=_BLUE, label="on the way")
    for outcome, colour in (("rejected", _ORANGE), ("error", "#dc2626"), ("cancelled", _GREY)):
        at = [r.end_s for r in result.records if r.outcome == outcome and r.end_s is not None]
        if at:
            label = f"{outcome} ({len(at)})"
            axes.plot(at, [0] * len(at), "|", color=colour, markersize=10, label=label)
    if axes.get_legend_handles_labels()[0][1:]:
        axes.legend(
            frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0
        )
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, result.duration_s)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")


def _bins(duration_s: float) -> NDArray[np.float64]:
    """Whole seconds, or about forty pieces of what is short or long."""
    width = next(
        (one for one in (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300) if duration_s / one <= 60),
        3600.0,
    )
    return width * np.arange(math.ceil(duration_s / width) + 1, dtype=np.float64)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
