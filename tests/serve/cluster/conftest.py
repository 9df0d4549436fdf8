"""Fixtures: `nemo-trt serve --ray` as a process of its own, with two replicas."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
# `nemo-trt serve` whose replicas take a fifth of a second for a step while there is a file.
_SLOW = """
import os
import sys
import time
from nemo_trt.cli.main import main
from nemo_trt.serve.cluster import local

serve, hold = local._serve, sys.argv.pop(1)

async def slow(*given):
    from nemo_trt.serve.cluster import deploy

    class Slow(deploy.Replica):
        def __init__(self, *options):
            from nemo_trt.engines.ort_session import OrtSession

            step = OrtSession._step

            def waiting(session, *inputs):
                if os.path.exists(hold):
                    time.sleep(0.2)
                return step(session, *inputs)

            OrtSession._step = waiting
            super().__init__(*options)

    deploy.Replica = Slow
    await serve(*given)

local._serve = slow
main()
"""
_SAMPLE = re.compile(r'nemo_trt_(\w+)\{(?:.*,)?replica="(\w+)"\} (\S+)')


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs: its process, its address, a client with its key.

    While there is `hold`, steps are so slow that a long answer outlasts what a test does meanwhile.
    """

    process: subprocess.Popen[bytes]
    url: str
    client: httpx.Client
    hold: Path

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
    hold = log.with_name("hold")
    command = [sys.executable, "-P", "-c", _SLOW, str(hold), "serve", str(bundle), "--ray"]
    command += ["--port", "0", "--allow-unvalidated", "--drain-timeout", "60", *options]
    environment = os.environ | {"NEMO_TRT_API_KEYS": KEY}
    where = log.with_name("where")  # what lies here is no module of any process
    where.mkdir()
    (where / "onnxruntime.py").write_text("raise SystemExit('this ran')\n")
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment, cwd=where)
    try:
        while not (found := re.search(r"Ready after .* at (http://\S+?)\.\s", log.read_text())):
            if process.poll() is not None:
                pytest.fail(log.read_text())
            time.sleep(0.1)
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=found[1], headers=headers, timeout=600) as client:
            yield Cluster(process, found[1], client, hold)
    finally:
        process.terminate()
        process.wait(300)


@pytest.fixture(scope="session")
def small_tekken(cached: Any) -> Path:
    """Two seeded layers over Tekken's first tokens: a step costs next to nothing."""

    def make(folder: Path) -> None:
        from nemo_trt.export.bundle import export_bundle
        from nemo_trt.export.checkpoints.tokenizer_files import TEKKEN, tekken_of_mistral_common
        from nemo_trt.export.samples import SHAPES, write_seeded
        from nemo_trt.precision import DType

        shape = replace(SHAPES["nemo-tiny"], vocab_size=2048)
        write_seeded(folder / "checkpoint", shape, seed=3)
        tekken = json.loads(tekken_of_mistral_common().read_text(encoding="utf-8"))
        tekken["config"]["default_vocab_size"] = shape.vocab_size
        (folder / "checkpoint" / TEKKEN).write_text(json.dumps(tekken))
        export_bundle(folder / "checkpoint", folder / "bundle", precision=DType.FP32)

    return Path(cached("small-tekken", make) / "bundle")


@pytest.fixture(scope="module")
def cluster(small_tekken: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The tiny model in two replicas of two slots and one thread each."""
    log = tmp_path_factory.mktemp("cluster") / "log"
    size = ["--max-batch", str(SLOTS), "--max-seq-len", str(CONTEXT), "--threads", "1"]
    more = ["--replicas", "2", "--model-name", "model", "--max-body-bytes", "100000"]
    with run_cluster(small_tekken, log, *size, *more) as found:
        yield found


@pytest.fixture(scope="module")
def alone(small_tekken: Path, served: Any) -> Iterator[httpx.Client]:
    """The same model in one process."""
    from nemo_trt.serve import ServeOptions, create_app

    options = ServeOptions(allow_unvalidated=True, model_name="model")
    app = create_app(small_tekken, options=options, max_batch=SLOTS, max_seq_len=CONTEXT, threads=1)
    with served(app) as url:
        app.state.service.wait()
        with httpx.Client(base_url=url, timeout=600) as client:
            yield client
