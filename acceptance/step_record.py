"""What one step found: a JSON file of its own, written in one step and proved when it is read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from nemo_trt import atomic
from nemo_trt.errors import DAMAGED_JSON, StateError
from nemo_trt.utf8 import json_text

SCHEMA_VERSION = 1
STAGES = ("doctor", "smoke", "plan", "export", "build", "validate", "bench", "report")
"""In the order in which they run."""
Verdict = Literal["pass", "fail", "skip", "not run"]
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A step that was done, failed, skipped or not come to.

    Attributes:
        step: its name, which is its file's.
        stage: one of `STAGES`.
        subject: what of it, in words: "bf16 on ONNX Runtime".
        verdict: "skip" is for what this machine lacks, "not run" for what an earlier step prevents.
        reason: why, of every verdict but "pass".
        inputs: what the outcome is of: options, bytes, code. A step is repeated when they differ.
        environment: what it was made with: packages, and for speed the machine. A step is repeated
            when they differ, where this machine can; else its outcome stands.
        product: identity of what it made, an input of the steps that need it.
        facts: what it found.
        started_at: UTC, ISO 8601.
        seconds: wall time.
        peak_rss_bytes: largest resident memory of its process.
        machine: where, in words.
        code: version of nemo-trt and the commit it ran from.
    """

    step: str
    stage: str
    subject: str
    verdict: Verdict
    reason: str = ""
    inputs: Mapping[str, Scalar] = field(default_factory=dict)
    environment: Mapping[str, Scalar] = field(default_factory=dict)
    product: Mapping[str, Scalar] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    started_at: str = ""
    seconds: float = 0.0
    peak_rss_bytes: int | None = None
    machine: str = ""
    code: str = ""

    def to_json(self) -> str:
        """The text of its file."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return json_text({"sha256": _digest(data), **data})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            StateError: it is damaged, altered, or of another version.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("sha256") != _digest(data):
                raise ValueError("its digest differs")
            if data.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError("it is of another version")
            return cls(**data)
        except DAMAGED_JSON as error:
            raise StateError(f"A step's record is damaged: {error}.") from error


def record_file(report_folder: Path, step: str) -> Path:
    """Where a step's record lies."""
    return report_folder / "steps" / f"{step}.json"


def write_record(report_folder: Path, record: Record) -> None:
    """Write a record in one step."""
    atomic.write_text(record_file(report_folder, record.step), record.to_json())


def read_record(report_folder: Path, step: str) -> Record | None:
    """The record of an earlier run, None when there is none.

    Raises:
        StateError: it is damaged.
    """
    try:
        text = record_file(report_folder, step).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"A step's record is damaged: {error}.") from error
    record = Record.from_json(text)
    if record.step != step:
        raise StateError(f"A step's record is damaged: it is that of {record.step}.")
    return record


def differences(old: Mapping[str, Scalar], new: Mapping[str, Scalar]) -> list[str]:
    """What changed among a step's inputs, in words."""
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        before, after = old.get(name), new.get(name)
        if before == after and (name in old) == (name in new):
            continue
        if _is_digest(before) or _is_digest(after):
            found.append(f"{name} changed")
        else:
            found.append(f"{name} was {before}, is {after}")
    return found


def _is_digest(value: Scalar) -> bool:
    return isinstance(value, str) and len(value) == 64


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
