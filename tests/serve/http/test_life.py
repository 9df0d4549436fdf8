"""A server's life: refused, starting, ready, draining, gone."""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from nemo_trt.digest import SAMPLE_BYTES
from nemo_trt.engines.runner import Runner
from nemo_trt.errors import BundleError, FaultError, MachineError
from nemo_trt.manifest import read_manifest
from nemo_trt.safetensors import read_layout
from nemo_trt.serve import ServeOptions, create_app
from nemo_trt.serve.http import serve_forever
from tests.waiting import LIMIT_S, until, within

pytestmark = pytest.mark.model

OPEN = ServeOptions(allow_unvalidated=True)
LONG = {"prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True, "stream": True}


@pytest.fixture
def copy(shallow: Any, tmp_path: Path) -> Path:
    """A bundle whose verdict a test may write; its weights are links."""
    bundle = tmp_path / "copy"
    shutil.copytree(shallow.bundle, bundle, copy_function=os.link)
    return bundle


def test_what_has_not_passed_is_not_served(copy: Path) -> None:
    with pytest.raises(BundleError, match="none yet: run nemo-trt validate"):
        create_app(copy)
    app = create_app(copy, options=OPEN, max_seq_len=256)
    with TestClient(app) as client:
        app.state.service.wait()
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert not ready.json()["validated"] and "none yet" in ready.json()["validation"]


def test_what_has_passed_is(copy: Path, vouch: Any) -> None:
    vouch(copy)
    app = create_app(copy, max_seq_len=256, max_batch=2)
    with TestClient(app) as client:
        app.state.service.wait()
        found = client.get("/health/ready").json()
    assert found["validated"] and found["validation"] == "pass"
    assert found["engine"]["backend"] == "onnxruntime"
    assert (found["slots"], found["max_seq_len"]) == (2, 256)
    assert found["bundle_id"] == read_manifest(copy).bundle_id


def test_weights_are_compared_while_they_load(copy: Path, vouch: Any) -> None:
    vouch(copy)
    weights = next((copy / "weights").iterdir())
    altered = bytearray(weights.read_bytes())
    largest = max(read_layout(weights).values(), key=lambda ref: ref.num_bytes)
    altered[largest.offset + 2 * SAMPLE_BYTES] ^= 1  # between the samples of the quick digest
    weights.unlink()  # a link
    weights.write_bytes(altered)
    service = create_app(copy, max_seq_len=256).state.service
    with pytest.raises(MachineError, match="was altered after it was judged"):
        service.wait()
    assert service.state == "failed"
    service.close()
    told = create_app(copy, options=OPEN, max_seq_len=256).state.service
    told.wait()
    assert told.state == "ready" and not told.validated and "altered" in told.verdict
    told.close()


def test_more_than_was_judged_is_refused_and_the_default_stays_within(
    copy: Path, vouch: Any
) -> None:
    vouch(copy, max_seq_len=300, max_batch=3)
    with pytest.raises(BundleError, match=r"301 tokens a row.*--max-seq-len 301"):
        create_app(copy, max_seq_len=301)
    with pytest.raises(BundleError, match=r"4 rows, judged were 3.*--max-batch 4"):
        create_app(copy, max_batch=4)
    with (
        Runner.open(copy, max_seq_len=512) as runner,
        pytest.raises(BundleError, match="512 tokens a row"),
    ):
        create_app(runner)
    service = create_app(copy).state.service
    service.wait()
    found = service.describe()
    assert (found["slots"], found["max_seq_len"], found["validation"]) == (3, 300, "pass")
    service.close()


def test_requests_get_503_until_the_engine_is_open(
    shallow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open = threading.Event()
    really_open = Runner.open

    def slow(*arguments: Any, **options: Any) -> Runner:
        may_open.wait(LIMIT_S)
        return really_open(*arguments, **options)

    monkeypatch.setattr(Runner, "open", slow)
    app = create_app(shallow.bundle, options=OPEN, max_seq_len=256)
    with TestClient(app) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").json()["status"] == "starting"
        answer = client.post("/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "starting"
        assert client.get("/metrics").status_code == 200
        may_open.set()
        app.state.service.wait()
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200


def test_an_engine_that_does_not_open_is_said_to_have_failed(
    shallow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Runner:
        raise MachineError("no memory for that")

    monkeypatch.setattr(Runner, "open", broken)
    app = create_app(shallow.bundle, options=OPEN)
    with TestClient(app) as client:
        with pytest.raises(MachineError, match="no memory"):
            app.state.service.wait()
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert (ready.json()["status"], ready.json()["failure"]) == ("failed", "no memory for that")


def test_an_application_mounts_in_another_over_a_runner_of_its_own(shallow: Any) -> None:
    runner = Runner.open(shallow.bundle, max_batch=2, max_seq_len=256)
    inner = create_app(runner, options=OPEN)
    outer = FastAPI()
    outer.mount("/llm", inner)
    with TestClient(outer) as client:
        inner.state.service.wait()
        answer = client.post("/llm/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert answer.status_code == 200
        assert client.get("/llm/").text.startswith("<!doctype html>")
    inner.state.service.close()


# While there is a file "hold" in the bundle's folder, decode steps wait after a few.
_HOLDING = """
import sys, time
from pathlib import Path
from nemo_trt.cli.main import main
from nemo_trt.engines.ort_session import OrtSession
hold, step, held = Path(sys.argv[2]) / "hold", OrtSession._step, 0
def waiting(self, input_ids, *rest):
    global held
    held += input_ids.shape[1] == 1 and hold.exists()
    while held > 4 and hold.exists():
        time.sleep(0.01)
    return step(self, input_ids, *rest)
OrtSession._step = waiting
main()
"""


@contextmanager
def process(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`nemo-trt serve` on a free port; yields it and its address."""
    command = [sys.executable, "-c", _HOLDING, "serve", str(bundle), "--port", "0"]
    started = subprocess.Popen(
        [*command, "--max-seq-len", "1024", "--drain-timeout", "600", "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background ignores SIGINT, which a child would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert started.stderr
    with within():  # what is held would wait for ever
        try:
            lines = []
            for line in started.stderr:
                lines.append(line)
                if found := re.search(r"Ready after .* at (http://\S+?)\.(\s|$)", line):
                    yield started, found[1]
                    return
            pytest.fail("".join(lines))
        finally:
            started.kill()
            started.wait()
            started.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish_and_exits_with_zero(
    copy: Path, vouch: Any, number: int
) -> None:
    vouch(copy)
    with process(copy) as (server, url), httpx.Client(base_url=url, timeout=LIMIT_S) as client:
        (copy / "hold").touch()
        with client.stream("POST", "/v1/completions", json=LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(number)
            until(lambda: client.get("/health/ready").status_code == 503)
            assert "\nnemo_trt_requests_running 1.0\n" in client.get("/metrics").text
            refused = client.post("/v1/completions", json={"prompt": "x"})
            assert refused.status_code == 503 and "shutting down" in refused.text
            (copy / "hold").unlink()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait(300) == 0


def test_a_second_signal_does_not_wait(copy: Path, vouch: Any) -> None:
    vouch(copy)
    with process(copy) as (server, url), httpx.Client(base_url=url, timeout=LIMIT_S) as client:
        (copy / "hold").touch()
        with client.stream("POST", "/v1/completions", json=LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            until(lambda: client.get("/health/ready").status_code == 503)  # it was received
            server.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
            assert '"error"' in rest[-1] and "shutting down" in rest[-1]
        (copy / "hold").unlink()
        assert server.wait(300) == 0


def test_a_port_that_is_taken_is_told(copy: Path, vouch: Any) -> None:
    vouch(copy)
    with process(copy) as (_, url):
        command = [sys.executable, "-m", "nemo_trt.cli.main", "serve", str(copy)]
        port = url.rsplit(":", 1)[1]
        done = subprocess.run([*command, "--port", port], capture_output=True, text=True)
    assert done.returncode == 3
    assert f"127.0.0.1:{port} must be free" in done.stderr


def test_an_engine_that_fails_is_told_answers_who_waits_and_ends_the_process(
    shallow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(shallow.bundle, options=OPEN, max_seq_len=256, max_batch=2)
    service = app.state.service
    statuses: list[int] = []
    asking: list[threading.Thread] = []
    frozen: list[int] = []

    def broken() -> Any:
        raise ZeroDivisionError("planted")

    def ask(url: str) -> None:
        statuses.append(httpx.post(f"{url}/v1/completions", json={"prompt": "x"}).status_code)

    def on_ready(url: str) -> None:
        frozen.append(gc.get_freeze_count())
        service.engine._scheduler.step = broken
        asking.append(threading.Thread(target=ask, args=(url,)))
        asking[0].start()

    with pytest.raises(FaultError, match="ZeroDivisionError: planted"):
        serve_forever(app, host="127.0.0.1", port=0, drain_timeout_s=600, on_ready=on_ready)
    asking[0].join()
    assert statuses == [503]
    assert frozen[0] > 50_000 and gc.get_freeze_count() == 0
    assert "the engine has failed" in caplog.text and "planted" in caplog.text
    with TestClient(app) as client:
        live = client.get("/health/live")
    assert (live.status_code, live.json()["failure"]) == (500, "ZeroDivisionError: planted")
