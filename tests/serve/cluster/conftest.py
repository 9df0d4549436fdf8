"""Fixtures: `nemo-trt serve --ray` as a process of its own, with two replicas."""

import contextlib
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

with warnings.catch_warnings(), contextlib.suppress(ImportError):
    warnings.simplefilter("ignore")  # Ray's own, while it is imported
    import ray.serve  # noqa: F401

KEY = "a-key"
CONTEXT = 2048
SLOTS = 2
_SAMPLE = re.compile(r'nemo_trt_(\w+)\{(?:.*,)?replica="(\w+)"\} (\S+)')


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs: its process, its address, a client with its key."""

    process: subprocess.Popen[bytes]
    url: str
    client: httpx.Client

    def replicas(self) -> dict[str, int]:
        """The process of each replica that answers, by its name."""
        found = self.client.get("/health/ready").json()["replicas"]
        return {one["replica"]: one["pid"] for one in found}

    def samples(self, name: str) -> dict[str, float]:
        """A metric's sum by replica."""
        found: dict[str, float] = {}
        for metric, replica, value in _SAMPLE.findall(self.client.get("/metrics").text):
            if metric == name:
                found[replica] = found.get(replica, 0) + float(value)
        return found

    def until(self, name: str, wanted: float) -> None:
        """Wait until a metric's sum over all replicas has a value."""
        for _ in range(6000):
            found = sum(self.samples(name).values())
            if found == wanted:
                return
            time.sleep(0.05)
        pytest.fail(f"{name} is {found}, not {wanted}")


@contextmanager
def run_cluster(bundle: Path, log: Path, *options: str) -> Iterator[Cluster]:
    command = [sys.executable, "-m", "nemo_trt.cli.main", "serve", str(bundle), "--ray"]
    command += ["--port", "0", "--allow-unvalidated", "--drain-timeout", "60", *options]
    environment = os.environ | {"NEMO_TRT_API_KEYS": KEY}
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment)
    try:
        while not (found := re.search(r"Ready after .* at (http://\S+?)\.\s", log.read_text())):
            if process.poll() is not None:
                pytest.fail(log.read_text())
            time.sleep(0.1)
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=found[1], headers=headers, timeout=600) as client:
            yield Cluster(process, found[1], client)
    finally:
        process.terminate()
        process.wait(300)


@pytest.fixture(scope="module")
def cluster(tekken_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The tiny model in two replicas of two slots and one thread each."""
    log = tmp_path_factory.mktemp("cluster") / "log"
    size = ["--max-batch", str(SLOTS), "--max-seq-len", str(CONTEXT), "--threads", "1"]
    more = ["--replicas", "2", "--model-name", "model", "--max-body-bytes", "100000"]
    with run_cluster(tekken_bundle, log, *size, *more) as found:
        yield found


@pytest.fixture(scope="module")
def alone(tekken_bundle: Path, served: Any) -> Iterator[httpx.Client]:
    """The same model in one process."""
    from nemo_trt.serve import ServeOptions, create_app

    options = ServeOptions(allow_unvalidated=True, model_name="model")
    app = create_app(
        tekken_bundle, options=options, max_batch=SLOTS, max_seq_len=CONTEXT, threads=1
    )
    with served(app) as url:
        app.state.service.wait()
        with httpx.Client(base_url=url, timeout=600) as client:
            yield client
