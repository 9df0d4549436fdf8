"""Writes a measurement down. Every time is in seconds; docs/load.md tells the fields."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemo_trt import __version__
from nemo_trt.atomic import write_text

from .run import LoadResult
from .summary import Summary

SCHEMA_VERSION = 1
REPORT_FILE, REQUESTS_FILE, PLOT_FILE = "report.json", "requests.jsonl", "plot.png"


def report(result: LoadResult, summary: Summary) -> dict[str, Any]:
    """Settings, server and figures."""
    scale = result.server.scale
    return {
        "schema_version": SCHEMA_VERSION,
        "nemo_trt": __version__,
        "started_at": datetime.fromtimestamp(result.started_at, UTC).isoformat("T", "seconds"),
        "broken_off": result.broken_off,
        "server": {
            "model": result.server.model,
            "product": result.server.product,
            "include_usage": result.server.include_usage,
            "prompt_tokens_per_word": round(scale.per_word, 4) if scale.measured else None,
        },
        "options": result.options.describe(),
        "summary": summary.as_json(),
    }


def write_folder(folder: Path, result: LoadResult, summary: Summary) -> None:
    """Write the report, a line a request, and the plot into a folder, which is made."""
    from .plot import write_plot

    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record.as_json(), ensure_ascii=False) for record in result.records)
    write_text(folder / REQUESTS_FILE, "".join(f"{line}\n" for line in lines))
    write_plot(folder / PLOT_FILE, result, summary)
    write_text(folder / REPORT_FILE, as_text(result, summary))


def as_text(result: LoadResult, summary: Summary) -> str:
    """The report as JSON."""
    return json.dumps(report(result, summary), indent=2, ensure_ascii=False) + "\n"
