"""How `nemo-trt bench-serve` shows its figures."""

from typing import TYPE_CHECKING

from .console import OUT

if TYPE_CHECKING:
    import rich.table

    from nemo_trt.serve.load import LoadResult, Summary

_LATE_S = 0.02


def show(result: "LoadResult", summary: "Summary") -> None:
    """Print tables of latencies, rates and what went wrong."""
    import rich.table

    options = result.options
    load = (
        f"{options.rate:g} requests/s ({options.arrivals})"
        if options.rate
        else f"{options.concurrency} clients"
    )
    title = f"{result.server.model} at {options.base_url}, {load}"
    table = rich.table.Table(box=None, title=title, title_justify="left", header_style="dim")
    table.add_column("ms")
    for name in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    rows = {
        "time to first token": summary.ttft_s,
        "between tokens": summary.itl_s,
        "a token, by request": summary.tpot_s,
        "whole request": summary.latency_s,
    }
    for name, found in rows.items():
        if found:
            values = (found.mean, found.p50, found.p90, found.p95, found.p99, found.max)
            table.add_row(name, *(_milliseconds(value) for value in values))
    OUT.print(table)
    OUT.print(_rates(result, summary))
    for line in _remarks(result, summary):
        OUT.print(f"[yellow]{line}")


def _rates(result: "LoadResult", summary: "Summary") -> "rich.table.Table":
    import rich.table

    table = rich.table.Table(box=None, show_header=False)
    ended = ", ".join(f"{count} {name}" for name, count in summary.outcomes.items())
    table.add_row("requests", f"{ended} in {summary.duration_s:.1f} s")
    table.add_row("requests/s", f"{summary.requests_per_s:,.2f}")
    table.add_row("output tokens/s", f"{summary.output_tokens_per_s:,.1f}")
    table.add_row("all tokens/s", f"{summary.total_tokens_per_s:,.1f}")
    prompt = f"{summary.prompt_tokens:,} of prompts"
    if summary.cached_tokens:
        prompt += f" ({summary.cached_tokens:,} cached)"
    table.add_row("tokens", f"{prompt}, {summary.output_tokens:,} of answers")
    if summary.goodput:
        good = summary.goodput
        table.add_row("goodput", f"{good.per_s:,.2f} requests/s, {good.share:.1%} within limits")
    if summary.lateness_s:
        late = summary.lateness_s
        table.add_row(
            "sent late by",
            f"p50 {_milliseconds(late.p50)} ms, max {_milliseconds(late.max)} ms; "
            f"{summary.cpu_share:.0%} of a core",
        )
    return table


def _remarks(result: "LoadResult", summary: "Summary") -> list[str]:
    lines = []
    if result.broken_off:
        lines.append("Stopped before its end: the figures are those of what there was.")
    if summary.rejected:
        told = f", {summary.retry_after} with Retry-After" if summary.retry_after else ""
        lines.append(f"{summary.rejected} requests were refused with 429{told}.")
    for status, count in summary.errors.items():
        records = [r for r in result.records if r.outcome == "error"]
        words = next(r.error for r in records if str(r.status or "no answer") == status)
        lines.append(f"{count} failed ({status}), the first with: {words}")
    if summary.counted_by_chunks:
        lines.append("The server counted no tokens: each piece of an answer counts as one.")
    if not result.server.scale.measured and result.options.prompts is None:
        lines.append("The server counted no prompt tokens: a word of a prompt was taken for one.")
    lag = summary.loop_lag_s
    if lag and lag.p99 > _LATE_S:
        lines.append(
            f"The load generator itself was late (p99 {_milliseconds(lag.p99)} ms): its machine is "
            "too busy for these figures."
        )
    return lines


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 else f"{value:.2f}"
