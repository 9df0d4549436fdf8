"""What a cluster is made of: arguments as text, threads and cores, Ray's own settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nemo_trt.cli.main import cli, run
from nemo_trt.errors import BundleError, MachineError, RequestError
from nemo_trt.serve import ServeOptions
from nemo_trt.serve.cluster import ClusterOptions
from nemo_trt.serve.cluster.exposition import merged
from nemo_trt.serve.cluster.local import shared_out
from nemo_trt.where import Where

pytestmark = pytest.mark.unit

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nemo-trt[ray]'")
OPTIONS = ClusterOptions(bundle=Path("b"))


def deployments(application: Any) -> tuple[Any, Any]:
    """The ingress, and the replicas that are bound into it."""
    ingress = application._bound_deployment
    return ingress, ingress.init_args[0]._bound_deployment


def build(given: dict[str, Any]) -> Any:
    from nemo_trt.serve.cluster import build

    return build(given)


def test_arguments_are_taken_as_text(
    tekken_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    monkeypatch.setenv("NEMO_TRT_API_KEYS", "two")
    monkeypatch.chdir(tekken_bundle.parent)
    given = {"bundle": "bundle", "replicas": "3", "max_batch": "4", "threads": "2"}
    given |= {"max_queue": "9", "allow_unvalidated": "true", "api_key_file": str(keys)}
    ingress, replicas = deployments(build(given))
    (options,) = replicas.init_args
    assert options.bundle == tekken_bundle  # workers run in other folders
    assert (options.max_batch, options.threads, options.server.max_queue) == (4, 2, 9)
    assert options.server.allow_unvalidated is True
    assert replicas.num_replicas == 3
    assert replicas.ray_actor_options == {"num_cpus": 2.0, "num_gpus": 0.0}
    assert replicas.max_ongoing_requests == 4 + 9 + 8
    assert replicas.max_queued_requests == 9
    router = replicas._deployment_config.request_router_config
    assert router.request_router_kwargs == {"slack": 4.0}
    assert ingress.init_args[1].api_keys == ("one", "two")
    assert options.server.api_keys == ()


def test_replicas_follow_the_queue(tekken_bundle: Path) -> None:
    given = {"bundle": tekken_bundle, "autoscale": "2:5", "replicas": 9, "max_batch": 3}
    _, replicas = deployments(build(given))
    scaling = replicas._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (2, 5, 5)
    assert scaling.target_ongoing_requests == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replica": 2}, "got 'replica'"),
        ({"server": ServeOptions()}, "got 'server'"),
        ({"replicas": "many"}, "replicas"),
        ({"replicas": 0}, "replicas must be at least 1"),
        ({"autoscale": "3:2"}, "1 <= MIN <= MAX"),
        ({"autoscale": "3"}, "autoscale"),
        ({"max_queue": -1}, "max_queue must be above 0"),
        ({}, "bundle"),
    ],
)
def test_arguments_out_of_range_are_told(given: dict[str, Any], words: str) -> None:
    bundle = {"bundle": "b"} if given else {}
    with pytest.raises(RequestError, match=words):
        build(bundle | given)


def test_a_bundle_that_is_missing_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        build({"bundle": tmp_path / "none"})


@pytest.mark.parametrize(
    ("changed", "cores", "threads", "cpus"),
    [
        ({"replicas": 2}, 8, 4, 4.0),
        ({"replicas": 3}, 8, 2, 2.0),
        ({"replicas": 4}, 2, 1, 0.5),
        ({"replicas": 1, "autoscale": (1, 4)}, 8, 2, 2.0),
        ({"replicas": 2, "threads": 3}, 8, 3, 3.0),
        ({"replicas": 2, "threads": 6}, 8, 6, 4.0),  # as asked; Ray can still place them
        ({"replicas": 2, "where": Where.of("h100-fp8")}, 8, None, 1.0),
    ],
)
def test_replicas_share_the_cores(
    changed: dict[str, Any], cores: int, threads: int | None, cpus: float
) -> None:
    options = shared_out(replace(OPTIONS, **changed), cores)
    assert (options.compute_threads, options.cpus) == (threads, cpus)


def test_an_engine_has_a_gpu_of_its_own() -> None:
    assert OPTIONS.gpus == 0
    assert replace(OPTIONS, where=Where.of("h100-fp8")).gpus == 1
    assert replace(OPTIONS, where=Where.of("h100-fp8"), num_gpus=0.5).gpus == 0.5


def test_expositions_become_one_with_each_replicas_name() -> None:
    one = '# HELP a What.\n# TYPE a counter\na{end="x y}"} 1.0\n# TYPE b gauge\nb 2.0\n'
    other = '# HELP a What.\n# TYPE a counter\na{end="z"} 3.0\n'
    assert merged({"r1": one, "r2": other}) == (
        '# HELP a What.\n# TYPE a counter\na{end="x y}",replica="r1"} 1.0\n'
        'a{end="z",replica="r2"} 3.0\n# TYPE b gauge\nb{replica="r1"} 2.0\n'
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replicas", "2"], "go with --ray"),
        (["--autoscale", "1:2"], "go with --ray"),
        (["--ray", "--autoscale", "1-2"], "must be MIN:MAX"),
        (["--ray", "--autoscale", "2:1"], "1 <= MIN <= MAX"),
    ],
)
def test_the_command_line_tells_what_does_not_fit(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["serve", "bundle", *arguments])
    assert result.exit_code and words in f"{result.output} {result.exception}"


def test_without_ray_the_remedy_is_told(
    tekken_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(["serve", str(tekken_bundle), "--ray", "--allow-unvalidated", "--port", "0"]) == 3
    assert "pip install 'nemo-trt[ray]'" in capsys.readouterr().err


def test_gpus_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from nemo_trt.serve.cluster.local import require_gpus

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    require_gpus(replace(OPTIONS, where=Where.of("e"), replicas=1))
    with pytest.raises(MachineError, match="got 1"):
        require_gpus(replace(OPTIONS, where=Where.of("e"), replicas=2))
