"""Starts a step's process, follows its progress, and tells how it ended."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemo_trt.child import module_command
from nemo_trt.progress import Progress

from .step_record import Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a step's process ended. See `Record` for the fields."""

    verdict: Literal["pass", "fail", "skip"]
    reason: str = ""
    product: Mapping[str, Scalar] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    peak_rss_bytes: int | None = None


def run_stage(stage: str, arguments: Mapping[str, Any], log: Path, progress: Progress) -> Ended:
    """Run one stage's work in a process of its own; what it prints goes to `log`.

    It never raises for what happens in there: a crash is an outcome, and its reason is told.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    with log.open("wb") as output:
        process = subprocess.Popen(
            module_command("nemo_trt.acceptance.worker", str(writer)),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
        )
    os.close(writer)
    done: dict[str, Any] | None = None
    try:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"stage": stage, "arguments": arguments}).encode())
            process.stdin.close()
        except BrokenPipeError:  # it died at once: its log says why
            pass
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                try:
                    told = json.loads(line)
                except ValueError:  # it died in the middle of a line
                    break
                if "phase" in told:
                    progress.phase(told["phase"], told["total"], told["unit"])
                elif "advance" in told:
                    progress.advance(told["advance"])
                else:
                    done = told["done"]
    except BaseException:
        process.kill()
        process.wait()
        raise
    code = process.wait()
    if done is not None and code == 0:
        return Ended(**done)
    return Ended(verdict="fail", reason=_death(code, log))


def _death(code: int, log: Path) -> str:
    """Why a process ended without an outcome."""
    lines = [
        line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line
    ]
    last = f" It said last: {lines[-1]}" if lines else ""
    if code >= 0:
        return f"Its process ended with exit code {code}.{last}"
    name = signal.Signals(-code).name
    memory = " The system does that when memory runs out." if name == "SIGKILL" else ""
    return f"Its process was ended by {name}.{memory}{last}"
