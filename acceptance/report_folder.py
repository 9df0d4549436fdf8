"""The report folder: report.json, report.md, and the plots that it shows."""

from datetime import UTC, datetime
from typing import Any

from nemo_trt import atomic
from nemo_trt.utf8 import json_text

from .acceptance_options import AcceptanceOptions
from .markdown import markdown
from .smoke.page import smoke_page
from .verdict import Line, Summary

SCHEMA_VERSION = 1
REPORT_JSON, REPORT_MARKDOWN, SMOKE_MARKDOWN = "report.json", "report.md", "smoke.md"


def write_report(options: AcceptanceOptions, summary: Summary) -> None:
    """Write both texts, each in one step."""
    data = report_data(options, summary)
    folder = options.report_folder
    text = json_text(data, allow_nan=False)
    atomic.write_text(folder / REPORT_JSON, text)
    atomic.write_text(folder / REPORT_MARKDOWN, markdown(data))


def write_smoke(options: AcceptanceOptions, summary: Summary) -> str:
    """Write the smoke's page in one step; return it."""
    text = smoke_page(report_data(options, summary))
    atomic.write_text(options.report_folder / SMOKE_MARKDOWN, text)
    return text


def report_data(options: AcceptanceOptions, summary: Summary) -> dict[str, Any]:
    """What `report.json` holds; docs/acceptance.md says what each field means."""
    doctor = next((line.record.facts for line in summary.of("doctor")), {})
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": summary.verdict,
        "finished": summary.finished,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": options.checkpoint.name,
        "gpu": options.target.name,
        "precisions": [str(precision) for precision in options.precisions],
        "versions": doctor.get("versions", {}),
        "machine": doctor.get("machine", {}),
        "steps": [_step(line) for line in summary.lines],
    }


def _step(line: Line) -> dict[str, Any]:
    record = line.record
    return {
        "step": record.step,
        "stage": record.stage,
        "subject": record.subject,
        "verdict": record.verdict,
        "reason": record.reason,
        "essential": line.essential,
        "kept": line.kept,
        "why": line.why,
        "started_at": record.started_at,
        "seconds": record.seconds,
        "peak_rss_bytes": record.peak_rss_bytes,
        "machine": record.machine,
        "code": record.code,
        "product": dict(record.product),
        "facts": dict(record.facts),
    }
