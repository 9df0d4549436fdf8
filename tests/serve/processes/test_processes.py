"""`nemo-trt serve --front-ends`, as processes: what each of them leaves when it ends, and knows."""

import json
import os
import re
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

from nemo_trt.errors import FaultError
from nemo_trt.serve import ServeOptions
from nemo_trt.serve.keys import KEYS_VARIABLE
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.serve.processes import front_ends, serve_by_front_ends
from tests.waiting import LIMIT_S, until, within

pytestmark = pytest.mark.e2e

PROMPT = {"prompt": "Once upon a time", "ignore_eos": True, "temperature": 0}
ENDLESS = PROMPT | {"max_tokens": 30_000, "stream": True}
"""Takes minutes: no test waits for its end."""
KEYS = ("sesame-of-the-environment", "sesame-of-the-file")


class Served:
    """A server's process, its address and its front ends."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url

    @property
    def front_ends(self) -> list[int]:
        """Their process ids."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for at in tasks for pid in (at / "children").read_text().split()]

    def ask(self, path: str, **more: Any) -> httpx.Response:
        """Over a connection of its own, which any front end may accept."""
        method = "POST" if "json" in more else "GET"
        return httpx.request(method, self.url + path, timeout=LIMIT_S, **more)

    def metrics(self) -> str:
        """Empty while nobody answers."""
        try:
            return self.ask("/metrics").text
        except httpx.TransportError:
            return ""

    def left(self) -> tuple[int, str]:
        """Wait until this process and every front end have ended; exit code and last words.

        Each holds the pipe of standard error, whose end comes with the last one's.
        """
        assert self.process.stderr is not None
        words = self.process.stderr.read()
        return self.process.wait(LIMIT_S), words


@contextmanager
def serving(bundle: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    """A server of two slots and two front ends, on a free port."""
    command = [sys.executable, "-m", "nemo_trt.cli.main", "serve", str(bundle), "--port", "0"]
    command += ["--front-ends", "2", "--allow-unvalidated", "--threads", "1", "--max-batch", "2"]
    process = subprocess.Popen(
        [*command, "--max-seq-len", "32768", "--drain-timeout", "600", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stderr is not None
    with within():
        try:
            words = ""
            while not (found := re.search(r"Ready after .* at (http://\S+?)\.\s", words)):
                line = process.stderr.readline()
                assert line, words
                words += line
            yield Served(process, found[1])
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


@contextmanager
def stream(served: Served, body: dict[str, Any]) -> Iterator[Iterator[str]]:
    """The lines of a stream, after the first one: it has a slot."""
    url = f"{served.url}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=LIMIT_S) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines).startswith("data: {")
        yield lines


def test_front_ends_that_are_killed_free_their_slots_and_are_replaced(tekken_bundle: Path) -> None:
    with serving(tekken_bundle) as served:
        killed = served.front_ends
        assert len(killed) == 2
        with stream(served, ENDLESS | {"n": 2}) as lines:
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                list(lines)
        until(lambda: 'requests_total{end="cancelled"} 2.0' in served.metrics())
        assert "\nnemo_trt_requests_running 0.0\n" in served.metrics()
        answer = served.ask("/v1/completions", json=PROMPT | {"max_tokens": 2})
        assert answer.status_code == 200
        until(lambda: len(served.front_ends) == 2)
        assert not set(killed) & set(served.front_ends)
        served.process.terminate()
        code, words = served.left()
        assert code == 0
        assert words.count("a front end ended with code -9; another one is started") == 2


def test_without_the_engines_process_streams_end_with_an_error_and_nobody_is_left(
    tekken_bundle: Path,
) -> None:
    with serving(tekken_bundle) as served, stream(served, ENDLESS) as lines:
        served.process.kill()
        *_, last = lines
        error = json.loads(last.removeprefix("data: "))["error"]
        assert "engine's process has ended" in error["message"]
        code, _ = served.left()
        assert code == -signal.SIGKILL


def test_a_signal_to_all_lets_what_runs_finish_and_exits_with_zero(tekken_bundle: Path) -> None:
    with serving(tekken_bundle) as served:
        with stream(served, PROMPT | {"max_tokens": 500, "stream": True}) as lines:
            for pid in (*served.front_ends, served.process.pid):
                os.kill(pid, signal.SIGTERM)
            *_, last, done = lines
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        code, words = served.left()
        assert code == 0 and "Traceback" not in words


def test_while_it_drains_front_ends_say_so_and_a_client_that_leaves_ends_it(
    tekken_bundle: Path,
) -> None:
    with serving(tekken_bundle) as served:
        with stream(served, ENDLESS):
            served.process.terminate()
            until(lambda: served.ask("/health/ready").status_code == 503)
            refused = served.ask("/v1/completions", json=PROMPT)
            assert refused.status_code == 503 and "shutting down" in refused.text
            assert "\nnemo_trt_requests_running 1.0\n" in served.metrics()
        code, words = served.left()
        assert code == 0 and "Traceback" not in words


def test_a_second_signal_does_not_wait(tekken_bundle: Path) -> None:
    with serving(tekken_bundle) as served, stream(served, ENDLESS) as lines:
        served.process.terminate()
        until(lambda: served.ask("/health/ready").status_code == 503)  # it was received
        served.process.terminate()
        *_, last = lines
        assert '"error"' in last and "shutting down" in last
        code, _ = served.left()
        assert code == 0


def test_api_keys_are_in_no_front_ends_arguments_or_environment(
    tekken_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(KEYS[1])
    file.chmod(0o600)
    options = ("--api-key-file", str(file))
    with serving(tekken_bundle, *options, **{KEYS_VARIABLE: KEYS[0]}) as served:
        assert served.ask("/v1/models").status_code == 401
        for key in KEYS:
            said = served.ask("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert said.status_code == 200
        for pid in served.front_ends:
            for name in ("cmdline", "environ"):
                assert b"sesame" not in Path(f"/proc/{pid}/{name}").read_bytes()


def test_a_front_end_that_does_not_start_ends_the_server_with_words(
    tekken_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_ends, "_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(FaultError, match="ended with code 3"):
        serve(tekken_bundle, lambda lifetime, url: None)


def test_an_engine_that_fails_answers_who_waits_and_ends_the_server(tekken_bundle: Path) -> None:
    statuses: list[int] = []
    asking: list[threading.Thread] = []

    def broken() -> Any:
        raise ZeroDivisionError("planted")

    def ask(url: str) -> None:
        answer = httpx.post(f"{url}/v1/completions", json=PROMPT, timeout=LIMIT_S)
        statuses.append(answer.status_code)

    def fail(lifetime: Lifetime, url: str) -> None:
        assert lifetime.engine is not None
        lifetime.engine._scheduler.step = broken  # type: ignore[method-assign]
        asking.append(threading.Thread(target=ask, args=(url,)))
        asking[0].start()

    with pytest.raises(FaultError, match="ZeroDivisionError: planted"):
        serve(tekken_bundle, fail)
    asking[0].join(LIMIT_S)
    assert statuses == [503]


def serve(bundle: Path, on_ready: Any) -> None:
    """Serve by one front end, with the engine in this process."""
    options = ServeOptions(allow_unvalidated=True)
    lifetime = Lifetime.begin(bundle, "cpu", options, max_batch=2, max_seq_len=256, threads=1)
    with within():
        serve_by_front_ends(
            lifetime,
            front_ends=1,
            host="127.0.0.1",
            port=0,
            drain_timeout_s=600,
            on_ready=lambda url: on_ready(lifetime, url),
        )
