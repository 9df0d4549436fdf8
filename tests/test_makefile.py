"""`make test-busy` ends the processes that keep the machine busy, however it ends itself."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[1]
WAITS = """
import signal
both = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
print("begun", flush=True)
raise SystemExit(signal.sigwait(both))
""".strip().replace("\n", ";")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("tests", "number"),
    [
        ("echo begun", None),
        ("sh -c 'echo begun; false'", None),
        (shlex.join([sys.executable, "-c", WAITS]), signal.SIGINT),
        (shlex.join([sys.executable, "-c", WAITS]), signal.SIGTERM),
    ],
    ids=["passes", "fails", "interrupted", "terminated"],
)
def test_nothing_runs_on_after_a_busy_run(tests: str, number: int | None) -> None:
    with subprocess.Popen(
        ["make", "-s", "test-busy", f"PYTEST={tests}", "-o", "install"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as make:
        try:
            assert make.stdout is not None
            while not make.stdout.readline().startswith("begun"):
                pass
            if number is not None:
                os.killpg(make.pid, number)
            make.communicate(timeout=LIMIT_S)  # the output ends when the last process has ended
        finally:
            if make.returncode is None:
                os.killpg(make.pid, signal.SIGKILL)
    assert (make.returncode == 0) == (tests == "echo begun")
