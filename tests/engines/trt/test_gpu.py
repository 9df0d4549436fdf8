"""The same properties on a real GPU, with an engine that is compiled for it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nemo_trt.cli.main import run
from nemo_trt.engines.machine import gpus
from nemo_trt.engines.targets import TARGETS
from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.manifest import read_manifest
from nemo_trt.precision import DType
from nemo_trt.tolerances import tolerance_of

from .properties import ONE, PROPERTIES, ROWS, T, tokens

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus(), reason="needs an NVIDIA GPU; none answers here"),
]


@pytest.fixture(scope="module", params=["bf16", "fp8", "bf16-paged", "fp8-paged"])
def engine(
    request: pytest.FixtureRequest,
    small: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """A bundle, and the name of its engine for this machine's first GPU."""
    sm = gpus()[0].sm
    target = next((one for one in TARGETS.values() if one.sm == sm), None)
    if target is None:
        pytest.skip(f"no target has sm_{sm}")
    precision, _, paged = request.param.partition("-")
    if paged:
        pytest.importorskip("triton", reason="the kernels are compiled by Triton")
    if not target.supports(DType(precision)):
        pytest.skip(f"sm_{sm} has no FP8")
    bundle = tmp_path_factory.mktemp("gpu") / "bundle"
    shutil.copytree(small[precision], bundle)
    shape = ["--max-seq-len", str(T), "--max-batch", str(ROWS), "--prefill-chunk", "8"]
    shape += ["--attention", "paged" if paged else "native"]
    assert run(["build", str(bundle), "--gpu", target.name, *shape]) == 0
    return bundle, f"{target.name}-{request.param}"


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_properties_of_every_session(holds: Callable[..., None], engine: tuple[Path, str]) -> None:
    bundle, name = engine
    with TensorRtSession.open(bundle, name) as session:
        limit = tolerance_of(session.compute_precision).max_relative_l2 / 2
        holds(session, bundle, limit=limit)


def test_a_graph_gives_what_a_plain_run_gives(engine: tuple[Path, str]) -> None:
    bundle, name = engine
    ids, results = tokens(1, 24), []
    for use_graphs in (True, False):
        with TensorRtSession.open(bundle, name, use_graphs=use_graphs) as session:
            results.append(
                [session.step(ids[:, [i]], np.array([i]), ONE).copy() for i in range(24)]
            )
    assert np.array_equal(results[0], results[1])


def test_the_cache_lies_where_it_was_written(engine: tuple[Path, str]) -> None:
    bundle, name = engine
    config = read_manifest(bundle).config
    block = np.arange(config.num_kv_heads * 5 * config.head_dim, dtype=np.float32) % 97
    block = block.reshape(config.num_kv_heads, 5, config.head_dim)
    with TensorRtSession.open(bundle, name) as session:
        session.write_cache(1, "value", 2, 7, block)
        assert (session.read_cache(1, "value", 2, 7, 12) == block).all()
        assert not session.read_cache(1, "value", 1, 1, T).any()  # opening runs a token at 0
