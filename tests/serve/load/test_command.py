"""`nemo-trt bench-serve` against the real server, over a tiny model: files, exit codes, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.cli.main import run
from nemo_trt.serve import ServeOptions, create_app

pytestmark = pytest.mark.model

Output = pytest.CaptureFixture[str]
SHORT = ["--requests", "6", "--concurrency", "3", "--warmup", "1", "--prompt-tokens", "40"]
SHORT += ["--output-tokens", "uniform:4:8", "--ignore-eos"]


@pytest.fixture(scope="module")
def url(tekken_bundle: Path, served: Any) -> Iterator[str]:
    """The tiny model in two slots; one key opens it."""
    options = ServeOptions(allow_unvalidated=True, model_name="tiny", api_keys=("right",))
    app = create_app(tekken_bundle, options=options, max_batch=2, max_seq_len=512)
    with served(app) as address:
        app.state.service.wait()
        yield address


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_TRT_API_KEY", "right")


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_our_own_server_is_measured(
    url: str, endpoint: str, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "out"
    assert run(["bench-serve", url, *SHORT, "--endpoint", endpoint, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "tiny at" in shown and "between tokens" in shown and "6 ok" in shown
    report = json.loads((out / "report.json").read_text())
    lines = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    assert report["server"]["model"] == "tiny" and report["server"]["include_usage"]
    assert "right" not in json.dumps(report)
    assert [line["counted_by"] for line in lines] == ["usage"] * 6
    assert [line["output_tokens"] for line in lines] == [
        line["planned_output_tokens"] for line in lines
    ]
    for line in lines:  # Tekken's words are not all one token: the length is met on average
        assert line["prompt_tokens"] == pytest.approx(40, abs=8)
        assert 0 < line["ttft_s"] <= line["latency_s"]
    summary = report["summary"]
    assert summary["output_tokens"] == sum(line["output_tokens"] for line in lines)
    assert summary["outcomes"] == {"ok": 6} and summary["counted_by_chunks"] == 0
    assert summary["itl_s"]["count"] == summary["output_tokens"] - 6
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_printed_alone(url: str, capsys: Output) -> None:
    assert run(["bench-serve", url, *SHORT, "--json", "-", "--slo-ttft", "600"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["summary"]["goodput"]["share"] == 1.0
    assert report["options"]["output_tokens"] == "uniform:4:8"


def test_an_open_loop_writes_what_was_asked_for(url: str, tmp_path: Path) -> None:
    report, plot = tmp_path / "r.json", tmp_path / "p.png"
    arguments = ["--rate", "20", "--requests", "4", "--output-tokens", "3", "--warmup", "0"]
    arguments += ["--json", str(report), "--plot", str(plot), "--cancel-fraction", "0.5"]
    assert run(["bench-serve", url, *arguments]) == 0
    assert sum(json.loads(report.read_text())["summary"]["outcomes"].values()) == 4
    assert plot.is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "other"], "must have the model 'other'"),
        (["--prompt-tokens", "many"], "Lengths must be"),
        (["--extra-body", "[]"], "must be a JSON object"),
        (["--extra-body", '{"colour": "red"}'], "must accept the requests"),
        (["--rate", "1", "--concurrency", "1"], "Either concurrency"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    url: str, arguments: list[str], words: str, capsys: Output
) -> None:
    assert run(["bench-serve", url, *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and "Traceback" not in captured.err


def test_a_wrong_key_is_told_of(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: Output, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEMO_TRT_API_KEY", "wrong")
    assert run(["bench-serve", url]) == 2
    assert "must be given an API key" in capsys.readouterr().err
    file = tmp_path / "key"
    file.write_text("right\n")
    assert run(["bench-serve", url, *SHORT, "--api-key-file", str(file)]) == 0
    file.write_text("\n")
    assert run(["bench-serve", url, *SHORT, "--api-key-file", str(file)]) == 2


def test_failed_requests_are_an_exit_code(url: str, capsys: Output) -> None:
    arguments = ["--requests", "2", "--prompt-tokens", "uniform:400:900", "--output-tokens", "200"]
    assert run(["bench-serve", url, *arguments, "--warmup", "0"]) == 1
    assert "failed (400), the first with: messages" in " ".join(capsys.readouterr().out.split())


@pytest.mark.e2e
def test_ctrl_c_reports_what_there_is(url: str, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    command = [sys.executable, "-m", "nemo_trt.cli.main", "bench-serve", url, *SHORT]
    command += ["--requests", "100000", "--json", str(report)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("measure"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert json.loads(report.read_text())["broken_off"]
