"""Every example runs as its first line says."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import LIMIT_S

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CAPITAL_OF_JAPAN = "What is the capital of Japan?"


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "embed_runner.py",
        "embed_service.py",
        "mount_app.py",
        "step_by_step.py",
        "validate_in_ci.sh",
    }


def test_the_runner_embeds_in_ten_lines(sample_bundle: Any, tmp_path: Path) -> None:
    example = EXAMPLES / "embed_runner.py"
    assert len([line for line in example.read_text().splitlines() if line][1:]) <= 10
    assert "Paris" in run([sys.executable, str(example), str(sample_bundle.bundle)], tmp_path)


def test_rows_step_by_step(sample_bundle: Any, tmp_path: Path) -> None:
    example = EXAMPLES / "step_by_step.py"
    lines = run([sys.executable, str(example), str(sample_bundle.bundle)], tmp_path).splitlines()
    assert lines[0].startswith("The sun rises in the ") and len(lines[0].split()) > 6
    assert lines[-1] == "Two plus two is"


def test_many_requests_without_http(sample_bundle: Any, tmp_path: Path) -> None:
    example = EXAMPLES / "embed_service.py"
    lines = run([sys.executable, str(example), str(sample_bundle.bundle)], tmp_path).splitlines()
    assert len(lines) == 4
    assert "Paris" in lines[0] and "Tokyo" in lines[1] and "Moscow" in lines[2]
    assert len(lines[3].split()) == len(["The", "sun", "rises", "in", "the"]) + 3


def test_the_api_within_another_service(sample_bundle: Any, vouch: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(sample_bundle.bundle, bundle, copy_function=os.link)
    vouch(bundle)
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0"]
    environment = {**os.environ, "BUNDLE": str(bundle)}
    with subprocess.Popen(
        [*command, "mount_app:app"], env=environment, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            url = listening(server)
            while "ready" not in (health := get(f"{url}/llm/health/ready")):
                assert "starting" in health
                time.sleep(0.2)
            assert "Paris" in get(f"{url}/capital/France")
            question = {"role": "user", "content": CAPITAL_OF_JAPAN}
            assert "Tokyo" in get(  # greedily: OpenAI's default temperature is 1
                f"{url}/llm/v1/chat/completions",
                {"model": "nemo", "messages": [question], "temperature": 0},
            )
            assert "<html" in get(f"{url}/llm/")
        finally:
            server.terminate()
    assert server.returncode == -signal.SIGTERM  # uvicorn raises it again after its shutdown


def listening(server: "subprocess.Popen[str]") -> str:
    assert server.stderr
    for line in server.stderr:
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise AssertionError("the server ended")


def get(url: str, body: dict[str, Any] | None = None) -> str:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_validation_as_a_ci_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [str(EXAMPLES / "validate_in_ci.sh"), str(tiny_checkpoint), "bundle"]
    assert "PASS" in run(command, tmp_path)
    assert json.loads((tmp_path / "validation-report.json").read_text())["verdict"] == "pass"
