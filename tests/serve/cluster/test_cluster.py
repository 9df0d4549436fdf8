"""A real Ray with two replicas on this machine: answers, routing, and lives that end early."""

import json
import os
import signal
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import KEY, SLOTS, Cluster, run_cluster

# In order: the last test of the shared cluster ends it.
pytestmark = [pytest.mark.e2e, pytest.mark.random_order(disabled=True)]

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nemo-trt[ray]'")
LONG = {"max_tokens": 500, "ignore_eos": True, "temperature": 0, "stream": True}


def events(lines: Any) -> list[Any]:
    """The data of server-sent events; the last of a whole stream is "[DONE]"."""
    found = [line.removeprefix("data: ") for line in lines if line]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def told(answer: httpx.Response) -> Any:
    """What must be equal wherever a request is answered."""
    body = answer.json()
    del body["usage"]["prompt_tokens_details"]  # what a cache holds is another matter
    return {name: body[name] for name in body if name not in ("id", "created")}


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 7}])
def test_answers_are_those_of_one_process(
    cluster: Cluster, alone: httpx.Client, sampling: dict[str, Any]
) -> None:
    limits = {"max_tokens": 24, "ignore_eos": True, "logprobs": True, **sampling}
    for number in range(3):
        text = f"{sampling} {number}: " + "how are you? " * number
        body = {"messages": [{"role": "user", "content": text}], **limits}
        path = "/v1/chat/completions"
        one, many = alone.post(path, json=body), cluster.client.post(path, json=body)
        assert many.status_code == 200
        assert told(many) == told(one)
        assert many.json()["usage"]["completion_tokens"] == 24


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/completions", {"prompt": "x", "n": 0}, 400),
        ("POST", "/v1/completions", {"prompt": "x", "model": "other"}, 404),
        ("POST", "/v1/completions", {"prompt": [[1]] * 2, "unknown": 1}, 400),
        ("GET", "/v1/completions", None, 405),
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/models", None, 200),
        ("POST", "/tokenize", {"prompt": "Hello"}, 200),
    ],
)
def test_other_paths_and_errors_are_those_of_one_process(
    cluster: Cluster, alone: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    one = alone.request(method, path, json=body)
    many = cluster.client.request(method, path, json=body)
    assert (one.status_code, many.status_code) == (status, status)
    if path != "/v1/models":  # it tells when it was started
        assert many.json() == one.json()


def test_the_ingress_asks_for_the_key_and_bounds_bodies(cluster: Cluster) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    body = {"prompt": "x", "max_tokens": 1}
    assert cluster.client.post("/v1/completions", json=body, headers=wrong).status_code == 401
    large = cluster.client.post("/v1/completions", json={"prompt": "x" * 100_000})
    assert large.status_code == 413 and "at most 100000 bytes" in large.json()["error"]["message"]
    assert cluster.samples("errors_total")["ingress"] == 2


def test_replicas_have_the_priority_of_whoever_started_them(cluster: Cluster) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in cluster.replicas().values()} == {own}


def test_a_request_has_one_id_everywhere(cluster: Cluster) -> None:
    answer = cluster.client.get("/v1/models", headers={"X-Request-Id": "my-own.id"})
    assert answer.headers.get_list("x-request-id") == ["my-own.id"]


def test_a_stream_passes_through_while_it_grows(cluster: Cluster) -> None:
    body = {"prompt": "Once upon a time", **LONG}
    cluster.hold.touch()
    with cluster.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        assert sum(cluster.samples("requests_running").values()) == 1
        cluster.hold.unlink()
        found = events([first, *lines])
    assert found[-1] == "[DONE]"
    assert len(found) > 100  # tokens that arrive together may lie in one event, most do not
    assert found[-2]["choices"][0]["finish_reason"] == "length"


def test_one_beginning_stays_with_one_replica_and_others_spread(cluster: Cluster) -> None:
    def ask(text: str) -> tuple[str, int]:
        before = cluster.samples("requests_total")
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        usage = cluster.client.post("/v1/chat/completions", json=body).json()["usage"]
        after = cluster.samples("requests_total")
        (replica,) = (name for name in after if after[name] > before.get(name, 0))
        return replica, usage["prompt_tokens_details"]["cached_tokens"]

    firsts = {}
    for number in range(4):
        beginning = f"Rules of house {number}. " + f"Be {number} times as kind. " * 40
        firsts[number], _ = ask(beginning)
        for question in ("Who?", "Where to?", "Why not?"):
            replica, cached = ask(beginning + question)
            assert replica == firsts[number]
            assert cached > 200
    assert len(set(firsts.values())) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(cluster: Cluster, stream: bool) -> None:
    cluster.until("requests_running", 0)
    body = {"prompt": "Once upon a time", **LONG, "max_tokens": 1900, "stream": stream}
    ended = sum(cluster.samples("requests_total").values())
    generated = sum(cluster.samples("generation_tokens_total").values())
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    cluster.hold.touch()
    with closing(HTTPConnection(cluster.url.removeprefix("http://"), timeout=600)) as leaving:
        leaving.request("POST", "/v1/completions", json.dumps(body), headers)
        cluster.until("requests_running", 1)
        if stream:
            assert leaving.getresponse().readline().startswith(b"data: ")
    cluster.until("requests_total", ended + 1)
    cluster.until("requests_running", 0)
    cluster.hold.unlink()
    assert sum(cluster.samples("generation_tokens_total").values()) - generated < 1900


class Asking(threading.Thread):
    """One client that streams, and what it got."""

    def __init__(self, cluster: Cluster, number: int, stream: bool) -> None:
        super().__init__()
        self.prompt = f"{number} " * 20
        self.stream, self.cluster = stream, cluster
        self.begun, self.events, self.status = threading.Event(), [], 0

    @property
    def body(self) -> dict[str, Any]:
        """A stream outlasts whatever else the test does; no whole answer runs until one is lost."""
        return {
            "prompt": self.prompt,
            **LONG,
            "max_tokens": 1900 if self.stream else 50,
            "stream": self.stream,
        }

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        with (
            httpx.Client(base_url=self.cluster.url, headers=headers, timeout=600) as client,
            client.stream("POST", "/v1/completions", json=self.body) as answer,
        ):
            self.status = answer.status_code
            if not self.stream:
                self.events = [json.loads(answer.read())]
                return
            lines = []
            for line in answer.iter_lines():
                lines.append(line)
                self.begun.set()
            self.events = events(lines)

    @property
    def text(self) -> str:
        return "".join(one["choices"][0]["text"] for one in self.events if one != "[DONE]")


def test_a_replica_that_is_killed_loses_its_streams_alone(
    cluster: Cluster, alone: httpx.Client
) -> None:
    cluster.until("requests_running", 0)
    before = cluster.replicas()
    assert len(before) == 2
    streams = [Asking(cluster, number, True) for number in range(4)]
    whole = [Asking(cluster, number, False) for number in range(4, 8)]
    cluster.hold.touch()
    for stream in streams:  # one by one, so that each replica has two
        stream.start()
        assert stream.begun.wait(600)
    for one in whole:
        one.start()
    cluster.until("requests_waiting", len(whole))
    running = cluster.samples("requests_running")
    killed = max(before, key=lambda name: running[name])
    assert running[killed] == SLOTS
    os.kill(before[killed], signal.SIGKILL)
    cluster.hold.unlink()
    for one in (*streams, *whole):
        one.join(600)
        assert not one.is_alive()
    lost = [one for one in streams if one.events[-1] != "[DONE]"]
    assert len(lost) == SLOTS
    for one in lost:
        error = one.events[-1]["error"]
        assert (error["code"], error["type"]) == ("replica_lost", "server_error")
        assert all("choices" in event for event in one.events[:-1])
    for one in whole:  # nothing of them had been sent: they ran again elsewhere
        assert one.status == 200
    for one in {*streams, *whole} - {*lost}:
        body = one.body | {"stream": False, "max_tokens": 200 if one.stream else 50}
        expected = alone.post("/v1/completions", json=body).json()["choices"][0]
        assert one.text.startswith(expected["text"]) if one.stream else one.text == expected["text"]
        finish = one.events[-2 if one.stream else -1]["choices"][0]["finish_reason"]
        assert finish == expected["finish_reason"] == "length"
    after = cluster.replicas()
    for _ in range(6000):
        if len(after) == 2:
            break
        time.sleep(0.1)
        after = cluster.replicas()
    assert len(after) == 2 and killed not in after and before.keys() & after.keys()
    answer = cluster.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert answer.status_code == 200


def descendants(pid: int) -> set[int]:
    """A process's children, and theirs."""
    parents = {}
    for found in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = found.read_text().rsplit(") ", 1)[1].split()
        except OSError:  # it has ended
            continue
        parents[int(found.parent.name)] = int(fields[1])
    known = {pid}
    while more := {one for one, parent in parents.items() if parent in known} - known:
        known |= more
    return known - {pid}


def left_after_a_while(started: set[int]) -> list[int]:
    """Those of the processes that do not end within minutes."""
    for _ in range(3000):
        if not any(Path(f"/proc/{pid}").exists() for pid in started):
            break
        time.sleep(0.1)
    return [pid for pid in started if Path(f"/proc/{pid}").exists()]


def drain(cluster: Cluster) -> None:
    """Signal it, and wait until it says that it takes nothing more."""
    cluster.process.send_signal(signal.SIGTERM)
    while cluster.client.get("/health/ready").status_code == 200:
        time.sleep(0.01)


def test_sigterm_lets_streams_end_and_leaves_no_process(cluster: Cluster) -> None:
    """The last one of this cluster: it ends it."""
    started = descendants(cluster.process.pid)
    assert len(started) > 5
    body = {"prompt": "Once upon a time", **LONG}
    cluster.hold.touch()
    with cluster.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        drain(cluster)
        refused = cluster.client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503 and "shutting down" in refused.text
        cluster.hold.unlink()
        assert events([first, *lines])[-1] == "[DONE]"
    assert cluster.process.wait(300) == 0
    assert not left_after_a_while(started)


def test_a_second_signal_does_not_wait(small_tekken: Path, tmp_path: Path) -> None:
    size = ("--max-batch", "1", "--max-seq-len", "4096", "--replicas", "1")
    with run_cluster(small_tekken, tmp_path / "log", *size) as cluster:
        started = descendants(cluster.process.pid)
        body = {"prompt": "Once upon a time", **LONG, "max_tokens": 4000}
        cluster.hold.touch()
        with cluster.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            drain(cluster)
            cluster.process.send_signal(signal.SIGTERM)
            found = events([first, *lines])
        assert "shutting down" in found[-1]["error"]["message"] and len(found) < 4000
        assert cluster.process.wait(300) == 0
        assert not left_after_a_while(started)
