"""`serve --front-ends` reaches what serves; what it does not go with is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt.cli.main import run
from nemo_trt.serve import ServeOptions, processes
from nemo_trt.serve.hosts import allowed_hosts
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.where import CPU

pytestmark = pytest.mark.unit


def test_front_ends_serve_the_engine_that_the_other_options_describe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = SimpleNamespace(slots=3, max_seq_len=512)
    lifetime = SimpleNamespace(
        engine=SimpleNamespace(facts=facts),
        verdict=SimpleNamespace(words="none yet"),
        bundle=SimpleNamespace(source_name="nemo"),
    )
    begun: list[Any] = []
    served: list[Any] = []

    def begin(*arguments: Any, **named: Any) -> Any:
        begun.append((arguments, named))
        return lifetime

    def serve(*arguments: Any, **named: Any) -> None:
        served.append((arguments, named))
        named["on_ready"]("http://there")

    monkeypatch.setattr(Lifetime, "begin", begin)
    monkeypatch.setattr(processes, "serve_by_front_ends", serve, raising=False)
    monkeypatch.setattr("nemo_trt.serve.log.log_to_stderr", lambda: None)
    rows = "--max-batch 3 --max-seq-len 512 --threads 2"
    where = "--host 127.0.0.2 --port 1234 --drain-timeout 8.5 --allow-unvalidated"
    assert run(f"serve b {rows} {where} --front-ends 4".split()) == 0

    ((arguments, named),) = begun
    options = ServeOptions(allow_unvalidated=True, allowed_hosts=allowed_hosts("127.0.0.2", ()))
    assert arguments == (Path("b"), CPU, options)
    assert named == {"max_batch": 3, "max_seq_len": 512, "threads": 2}
    ((arguments, named),) = served
    assert arguments == (lifetime,) and named.pop("on_ready")
    assert named == {"front_ends": 4, "host": "127.0.0.2", "port": 1234, "drain_timeout_s": 8.5}
    said = capsys.readouterr().err
    assert "nemo at http://there. 3 slots of at most 512 tokens. NOT VALIDATED: none yet." in said


@pytest.mark.parametrize(
    ("where", "processors", "front_ends"),
    [("--backend cpu", 64, 0), ("--backend cuda", 4, 1), ("--backend cuda", 3, 0),
     ("--engine h100-fp8", 16, 1), ("--engine h100-fp8 --front-ends 0", 16, 0)],
)  # fmt: skip
def test_an_engine_on_a_gpu_has_a_front_end_where_processors_are_free(
    where: str, processors: int, front_ends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[int] = []
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    monkeypatch.setattr("nemo_trt.serve.log.log_to_stderr", lambda: None)
    monkeypatch.setattr(Lifetime, "begin", lambda *_, **__: None)
    monkeypatch.setattr(
        processes, "serve_by_front_ends", lambda *_, front_ends, **__: served.append(front_ends),
        raising=False,
    )  # fmt: skip
    monkeypatch.setattr("nemo_trt.serve.http.create_app", lambda *_, **__: None)
    monkeypatch.setattr("nemo_trt.serve.http.serve_forever", lambda *_, **__: served.append(0))
    assert run(f"serve b --allow-unvalidated {where}".split()) == 0
    assert served == [front_ends]


def test_replicas_have_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "b", "--ray", "--front-ends", "2"]) == 2
    assert "does not go with --ray" in " ".join(capsys.readouterr().err.split())
