"""The same on a real GPU with onnxruntime-gpu: kernels, graphs, and no copy of the cache."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.engines.cuda.provider import CUDA, CudaProvider
from nemo_trt.engines.cuda.session import CudaSession
from nemo_trt.engines.device import CudaDevice
from nemo_trt.engines.machine import gpus
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.manifest import read_manifest
from nemo_trt.precision import DType
from nemo_trt.tolerances import tolerance_of
from nemo_trt.validate.explain.explain import explain
from nemo_trt.validate.explain.runners import open_runner
from nemo_trt.validate.sequences import TokenSequence
from nemo_trt.where import Where
from tests.engines.trt.properties import ONE, PROPERTIES, ROWS, T, tokens

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus(), reason="needs an NVIDIA GPU; none answers here"),
    pytest.mark.skipif(
        CUDA not in ort.get_available_providers(), reason="needs onnxruntime-gpu in place"
    ),
]
PRECISIONS = ["bf16", "fp8", "fp32"]


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def session(bundles: dict[str, Path], precision: str) -> Iterator[CudaSession]:
    with CudaSession.open(bundles[precision], max_batch=ROWS, max_seq_len=T) as session:
        yield session


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_properties_of_every_session(
    holds: Callable[..., None], session: CudaSession, bundles: dict[str, Path], precision: str
) -> None:
    limit = tolerance_of(session.compute_precision).max_relative_l2 / 2
    holds(session, bundles[precision], limit=limit)


def test_bf16_weights_compute_in_fp32_when_asked(bundles: dict[str, Path]) -> None:
    with CudaSession.open(
        bundles["bf16"], max_batch=ROWS, max_seq_len=T, base=DType.FP32
    ) as session:
        for holds in PROPERTIES:
            holds(session, bundles["bf16"], limit=tolerance_of("fp32").max_relative_l2)


def test_a_graph_gives_what_a_plain_run_gives(bundles: dict[str, Path]) -> None:
    ids, results = tokens(1, 24), []
    for use_graphs in (True, False):
        with CudaSession.open(bundles["bf16"], max_seq_len=T, use_graphs=use_graphs) as session:
            steps = [session.step(ids[:, [i]], np.array([i]), ONE).copy() for i in range(24)]
            results.append(steps)
    assert np.array_equal(results[0], results[1])


def test_a_prefill_between_decode_steps_disturbs_no_graph(bundles: dict[str, Path]) -> None:
    ids = tokens(2, 24)
    with CudaSession.open(bundles["bf16"], max_batch=2, max_seq_len=T) as session:
        alone = [session.step(ids[:1, [i]], np.array([i]), ONE).copy() for i in range(24)]
        mixed = []
        for index in range(24):
            mixed.append(session.step(ids[:1, [index]], np.array([index]), ONE).copy())
            session.step(ids[1:, : index + 1], np.array([0]), np.array([[index]]), 1)
    assert np.array_equal(alone, mixed)


def test_no_step_copies_the_cache(bundles: dict[str, Path]) -> None:
    """The cache takes nine tenths of the memory, in four tensors: a copy of one has no room."""
    config = read_manifest(bundles["bf16"]).config
    device = CudaDevice()
    free = device.free_bytes()
    device.close()
    row = config.kv_bytes_per_token(DType.BF16)
    length = int(0.9 * (free - 2**30) / (8 * row))
    assert 2 * config.num_layers == 4
    with CudaSession.open(bundles["bf16"], max_batch=8, max_seq_len=length) as session:
        ids, zeros = tokens(8, 6), np.zeros((8, 1), np.int64)
        session.step(ids[:, :3], zeros[:, 0], zeros + 2)
        for index in range(3, 6):
            session.step(ids[:, [index]], np.full(8, index), zeros)
        assert np.abs(session.read_cache(1, "value", 7, 0, 6)).max(axis=(0, 2)).all()
        assert not session.read_cache(1, "value", 7, 6, 12).any()


def test_the_cache_lies_where_it_was_written(bundles: dict[str, Path]) -> None:
    config = read_manifest(bundles["bf16"]).config
    block = np.arange(config.num_kv_heads * 5 * config.head_dim, dtype=np.float32) % 97
    block = block.reshape(config.num_kv_heads, 5, config.head_dim)
    with CudaSession.open(bundles["bf16"], max_batch=ROWS, max_seq_len=T) as session:
        session.write_cache(1, "value", 2, 7, block)
        assert (session.read_cache(1, "value", 2, 7, 12) == block).all()
        assert not session.read_cache(1, "value", 1, 0, T).any()


def test_the_device_pins_and_counts_its_memory() -> None:
    CudaProvider()
    device = CudaDevice()
    before = device.free_bytes()
    address = device.allocate(2**28)
    assert device.free_bytes() <= before - 2**28
    array = np.arange(2**20, dtype=np.uint8)
    device.pin(array)
    device.upload(address, array)
    found = np.empty_like(array)
    device.download(found, address)
    assert (found == array).all()
    device.free(address)
    device.close()
    assert array[5] == 5, "an array outlives its pinning"


def test_every_place_of_a_sound_graph_is_sound(bundles: dict[str, Path], precision: str) -> None:
    bundle = Bundle.open(bundles[precision])
    text = TokenSequence(name="text", tokens=tuple(range(10, 30)))
    far = TokenSequence(name="far", tokens=text.tokens[:6], start=40)
    checkpoint = open_checkpoint(bundles[precision].parent / "checkpoint")
    with closing(open_runner(bundle, Where("cuda"))) as runner:
        result = explain(bundle, checkpoint, text, far, runner=runner)
    assert result.found == () and "CUDA" in result.runner
