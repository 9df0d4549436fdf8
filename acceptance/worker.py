"""The process of one step: reads what to do from stdin, does it, tells how it goes on a pipe.

A step in a process of its own has its own peak of memory, gives it all back, and when a library
crashes or the system kills it for memory, the acceptance goes on and says so.
"""

import ctypes
import importlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from nemo_trt.acceptance.step_record import STAGES
from nemo_trt.acceptance.work.done import CannotHere, Done
from nemo_trt.errors import NemoTrtError
from nemo_trt.progress import Progress

_PR_SET_PDEATHSIG = 1


class _Told:
    """A `Progress` whose calls are lines on the pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, **line: Any) -> None:
        """Write one line."""
        text = json.dumps(plain(line), allow_nan=False) + "\n"
        data = text.encode()
        while data:
            data = data[os.write(self._pipe, data) :]

    def phase(self, name: str, total: int = 0, unit: Literal["steps", "bytes"] = "steps") -> None:
        self.tell(phase=name, total=total, unit=unit)

    def advance(self, amount: int = 1) -> None:
        self.tell(advance=amount)


def main() -> None:
    """Do one stage: stdin has {"stage": ..., "arguments": {...}}, argv[1] is the pipe's number."""
    _end_with_parent()
    told = _Told(int(sys.argv[1]))
    asked = json.loads(sys.stdin.read())
    if asked["stage"] not in STAGES:
        raise ValueError(f"no stage {asked['stage']}")
    done = outcome(asked["stage"], asked["arguments"], told)
    told.tell(done={**done, "peak_rss_bytes": _peak_rss_bytes()})


def outcome(stage: str, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Do a stage's work: the fields of its `Done`, whatever it raises."""
    try:
        work = importlib.import_module(f"nemo_trt.acceptance.work.{stage}")
        done: Done = work.run(**arguments, progress=progress)
        return asdict(done)
    except CannotHere as error:
        return {"verdict": "skip", "reason": str(error)}
    except NemoTrtError as error:
        traceback.print_exc()
        return {"verdict": "fail", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"verdict": "fail", "reason": f"{type(error).__name__}: {error}"}


def _peak_rss_bytes() -> int | None:
    """Peak of this process alone: what `getrusage` says counts the parent's as well."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(one.split()[1]) * 1024 for one in lines if one.startswith("VmHWM")), None)


def _end_with_parent() -> None:
    """A killed acceptance leaves no step behind that writes on beside the next run."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def plain(value: Any) -> Any:
    """What JSON can hold: numbers that it lacks stand as text ("inf", "nan")."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


if __name__ == "__main__":
    main()
