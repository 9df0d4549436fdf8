"""`serve run` with a configuration file, on a Ray of its own: replicas follow the queue."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.waiting import LIMIT_S

pytestmark = pytest.mark.e2e

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nemo-trt[ray]'")

CONFIGURATION = """\
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
logging_config: {{log_level: WARNING, enable_access_log: false}}
applications:
  - name: nemo
    route_prefix: /llm
    import_path: nemo_trt.serve.cluster:build
    args:
      bundle: {bundle}
      allow_unvalidated: true
      model_name: model
      max_batch: 1
      max_seq_len: 1024
      num_cpus: 0.5
      autoscale: "1:2"
      upscale_delay_s: 0
      downscale_delay_s: 1
"""


@pytest.fixture(scope="module")
def url(small_tekken: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an application that starts with one replica and may have two."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("run")
    configuration = folder / "nemo.yaml"
    configuration.write_text(CONFIGURATION.format(port=port, bundle=small_tekken))
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_AUTH_MODE": "token",
        "RAY_ADDRESS": "local",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    }
    # What Ray installs as `serve`, without its dashboard, a dozen processes.
    script = "import ray; from functools import partial; from ray.serve.scripts import cli; "
    script += "ray.init = partial(ray.init, include_dashboard=False); cli()"
    command = [sys.executable, "-c", script, "run", str(configuration)]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | own, stdout=output, stderr=output, cwd=folder
        )
    try:
        address = f"http://127.0.0.1:{port}/llm"
        while True:
            try:
                if httpx.get(f"{address}/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                pytest.fail(log.read_text())
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(300)


def replicas(url: str) -> int:
    return len(httpx.get(f"{url}/health/ready", timeout=LIMIT_S).json()["replicas"])


def until(url: str, wanted: int) -> None:
    """Wait for a number of replicas; one that does not come is a failure after ten minutes."""
    end = time.monotonic() + 600
    while (found := replicas(url)) != wanted:
        assert time.monotonic() < end, f"{found} replicas, not {wanted}"
        time.sleep(0.2)


def test_replicas_follow_the_queue_and_disturb_nobody(url: str) -> None:
    assert replicas(url) == 1
    crowd, last = threading.Event(), threading.Event()
    statuses: list[int] = []

    def ask(max_tokens: int, over: threading.Event) -> None:
        body = {"prompt": "x", "max_tokens": max_tokens, "ignore_eos": True}
        with httpx.Client(base_url=url, timeout=600) as client:
            while not over.is_set():
                statuses.append(client.post("/v1/completions", json=body).status_code)

    clients = [threading.Thread(target=ask, args=(400, crowd)) for _ in range(4)]
    clients.append(threading.Thread(target=ask, args=(20, last)))
    for client in clients:
        client.start()
    try:
        until(url, 2)
        crowd.set()
        until(url, 1)  # one client is what one replica is for
    finally:
        crowd.set()
        last.set()
        for client in clients:
            client.join()
    assert set(statuses) == {200}
    assert httpx.get(f"{url}/v1/models", timeout=LIMIT_S).json()["data"][0]["id"] == "model"
