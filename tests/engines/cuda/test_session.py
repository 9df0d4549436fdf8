"""The CUDA session's logic: memory, rows, aliasing and graph ids, on the host (`standin.py`)."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt import contract
from nemo_trt.engines.cuda import session as module
from nemo_trt.engines.cuda.provider import CudaProvider, require_cuda
from nemo_trt.engines.cuda.session import CudaSession
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import CapacityError, MachineError, RequestError, StateError
from nemo_trt.precision import DType
from tests.engines.trt.properties import ONE, PROPERTIES, ROWS, T, tokens

from .standin import HostDevice, HostProvider

pytestmark = pytest.mark.model


def open_on_host(bundle: Path, **options: Any) -> CudaSession:
    settings = {"max_batch": ROWS, "max_seq_len": T, "base": DType.FP32, **options}
    settings.setdefault("device", HostDevice())
    settings.setdefault("provider", HostProvider())
    return CudaSession(bundle, **settings)


@pytest.fixture
def opened(bundles: dict[str, Path]) -> Iterator[tuple[CudaSession, HostDevice, HostProvider]]:
    device, provider = HostDevice(), HostProvider()
    with open_on_host(bundles["bf16"], device=device, provider=provider) as session:
        yield session, device, provider


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_properties_of_every_session(
    holds: Callable[..., None], precision: str, bundles: dict[str, Path]
) -> None:
    with open_on_host(bundles[precision]) as session:
        holds(session, bundles[precision], limit=2e-4)


def test_a_long_step_is_cut_and_gives_the_same_logits(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, where = tokens(2, 20), np.array([0, 4])
    wanted = np.array([[3, 19], [17, 2]])  # of the middle piece nothing is wanted
    results = []
    for limit in (4096, 14):
        monkeypatch.setattr(module, "PREFILL_TOKENS", limit)
        provider = HostProvider()
        with open_on_host(bundles["bf16"], provider=provider) as session:
            session.step(ids[1:, :4], np.zeros(1, np.int64), ONE, 1)
            results.append(session.step(ids, where, wanted).copy())
            assert len(provider.bound) == (2 if limit == 4096 else 4)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_past_and_present_are_one_memory_of_the_device(
    opened: tuple[CudaSession, HostDevice, HostProvider],
) -> None:
    session, device, provider = opened
    session.step(tokens(2, 5), np.zeros(2, np.int64), np.zeros((2, 1), np.int64), 1)
    before = set(device.live)
    for index in range(5, 8):
        session.step(tokens(2, 8)[:, [index]], np.full(2, index), np.zeros((2, 1), int), 1)
    for bound in provider.bound:
        for past, present in contract.cache_names(session.config.num_layers):
            assert bound[past] == bound[present]
            assert device.holder(bound[past], 1) != bound[past], "row 1 is not row 0"
    assert len(set(device.live) - before) == 6, "a decode shape has its own inputs and logits"
    assert np.abs(session.read_cache(1, "value", 2, 0, 8)).max(axis=(0, 2)).all()
    assert not session.read_cache(1, "value", 2, 8, T).any()
    assert not session.read_cache(1, "value", 0, 0, T).any()


def test_a_rows_beginning_is_copied_on_the_device(
    opened: tuple[CudaSession, HostDevice, HostProvider],
) -> None:
    session, device, _ = opened
    config, random = session.config, np.random.default_rng(0)
    shape = (config.num_kv_heads, 9, config.head_dim)
    held = {
        (layer, kind): random.normal(size=shape).astype(np.float32)
        for layer in range(config.num_layers)
        for kind in ("key", "value")
    }
    for (layer, kind), block in held.items():
        session.write_cache(layer, kind, 2, 0, block)
    before = device.calls["bytes up"], device.calls["bytes down"]
    session.copy_cache(2, 0, 7)
    assert (device.calls["bytes up"], device.calls["bytes down"]) == before
    for (layer, kind), block in held.items():
        assert (session.read_cache(layer, kind, 0, 0, 7) == block[:, :7]).all()
        assert not session.read_cache(layer, kind, 0, 7, T).any()
        assert not session.read_cache(layer, kind, 1, 0, T).any()
        assert (session.read_cache(layer, kind, 2, 0, 9) == block).all()


def test_a_decode_step_allocates_nothing_and_copies_no_cache(
    opened: tuple[CudaSession, HostDevice, HostProvider],
) -> None:
    session, device, provider = opened
    one, rows = np.zeros((ROWS, 1), np.int64), tokens(ROWS, 4)
    session.step(rows[:, :1], np.zeros(ROWS, np.int64), one)
    live, calls = set(device.live), device.calls.copy()
    first = session.step(rows[:, 1:2], np.full(ROWS, 1), one)
    second = session.step(rows[:, 2:3], np.full(ROWS, 2), one)
    assert np.shares_memory(first, device.pinned[0])
    assert np.shares_memory(second, device.pinned[0])
    assert set(device.live) == live
    assert device.calls["allocate"] == calls["allocate"]
    moved = device.calls - calls
    assert moved["bytes up"] == 2 * 5 * 8 * ROWS
    assert moved["bytes down"] == 2 * 4 * ROWS * session.config.vocab_size
    assert provider.bound[-1] == provider.bound[-2], "a graph holds these addresses"


def test_decode_shapes_have_graphs_of_their_own_and_prefills_none(
    opened: tuple[CudaSession, HostDevice, HostProvider],
) -> None:
    session, _, provider = opened
    ids = tokens(ROWS, 6)
    session.step(ids, np.zeros(ROWS, np.int64), np.full((ROWS, 1), 5))
    for rows, first_row in ((3, 0), (1, 2), (3, 0), (1, 1)):
        where = np.full(rows, 6)
        session.step(ids[:rows, :1], where, np.zeros((rows, 1), np.int64), first_row)
    session.step(ids[:, :1], np.full(ROWS, 7), np.zeros((ROWS, 2), np.int64))
    assert provider.graph_ids == ["-1", "1", "2", "1", "3", "-1"]


def test_without_graphs_no_run_names_one(bundles: dict[str, Path]) -> None:
    provider = HostProvider()
    with open_on_host(bundles["bf16"], provider=provider, use_graphs=False) as session:
        session.step(tokens(1, 1), np.array([0]), ONE)
    assert provider.graph_ids == [""]


def test_it_generates_what_the_cpu_session_generates(bundles: dict[str, Path]) -> None:
    bundle, prompts = bundles["bf16"], tokens(2, 9).tolist()

    def generated(session: Any) -> list[tuple[int, int]]:
        with Runner(session) as runner:
            events = runner.generate(prompts, SamplingParams(max_tokens=12))
            return [(event.row, event.token_id) for event in events]

    expected = generated(OrtSession.open(bundle, max_batch=ROWS, max_seq_len=T))
    assert generated(open_on_host(bundle)) == expected


def test_what_does_not_fit_is_refused_in_numbers(bundles: dict[str, Path]) -> None:
    device = HostDevice(free=1000)
    with pytest.raises(MachineError, match=r"3 rows of 64 tokens .* GB free"):
        open_on_host(bundles["bf16"], device=device)
    assert device.closed
    assert not device.live
    with pytest.raises(MachineError, match="bytes for a token"):
        open_on_host(bundles["bf16"], device=HostDevice(free=1000), max_seq_len=None)


def test_by_default_the_cache_takes_what_is_free_up_to_the_context(
    bundles: dict[str, Path],
) -> None:
    with open_on_host(bundles["bf16"], max_seq_len=None, max_batch=1) as session:
        assert session.max_seq_len == session.config.max_position_embeddings
        per_token = session.config.kv_bytes_per_token(DType.FP32)
    free = 2 * 100 * per_token
    device = HostDevice(free=free)
    with open_on_host(bundles["bf16"], device=device, max_seq_len=None, max_batch=2) as session:
        assert session.max_seq_len == 80


@pytest.mark.parametrize("fail_at", [1, 4, 6])
def test_memory_that_is_refused_leaves_nothing_behind(
    bundles: dict[str, Path], fail_at: int
) -> None:
    device = HostDevice(fail_at=fail_at)
    with pytest.raises(MachineError, match="out of memory"):
        session = open_on_host(bundles["bf16"], device=device)
        try:
            session.step(tokens(1, 3), np.array([0]), ONE)
        finally:
            session.close()
    assert device.closed
    assert not device.live


def test_a_closed_session_has_freed_all_and_says_so(
    opened: tuple[CudaSession, HostDevice, HostProvider],
) -> None:
    session, device, _ = opened
    session.step(tokens(1, 3), np.array([0]), ONE)
    session.step(tokens(1, 1), np.array([3]), ONE)
    session.close()
    session.close()
    assert not device.live
    with pytest.raises(StateError, match="closed"):
        session.step(tokens(1, 1), np.array([0]), ONE)


def test_steps_beyond_rows_or_tokens_are_refused(
    opened: tuple[CudaSession, HostDevice, HostProvider],
) -> None:
    session, _, provider = opened
    with pytest.raises(RequestError, match="0 to 2"):
        session.step(tokens(2, 1), np.zeros(2, int), np.zeros((2, 1), int), 2)
    with pytest.raises(CapacityError, match="64"):
        session.step(tokens(1, 5), np.array([T - 4]), ONE)
    with pytest.raises(CapacityError, match="max_seq_len"):
        session.bind(T + 1)
    assert not provider.bound


@pytest.mark.parametrize(
    ("version", "providers", "words"),
    [
        ("1.32.0", ["CPUExecutionProvider"], r"pip install 'nemo-trt\[gpu\]'"),
        ("1.27.2", ["CUDAExecutionProvider"], "at least 1.28"),
    ],
)
def test_an_onnx_runtime_that_cannot_is_refused_with_what_to_install(
    version: str, providers: list[str], words: str
) -> None:
    with pytest.raises(MachineError, match=words):
        require_cuda(version, providers)
    require_cuda("1.28.0", ["CUDAExecutionProvider"])


def test_this_machine_says_what_it_lacks(bundles: dict[str, Path]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed here")
    with pytest.raises(MachineError, match="uninstall -y onnxruntime"):
        CudaProvider()
    with pytest.raises(MachineError, match="pip"):
        CudaSession.open(bundles["bf16"])


def test_every_step_runs_in_one_thread_that_is_not_the_callers(
    opened: tuple[CudaSession, HostDevice, HostProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime keeps a CUDA graph for the thread that captured it."""
    session, _, _ = opened
    found, piece = set(), session._piece

    def noted(*arguments: Any) -> Any:
        found.add(threading.get_ident())
        return piece(*arguments)

    monkeypatch.setattr(session, "_piece", noted)
    ids, where, wanted = tokens(1, 1), np.zeros(1, np.int64), np.zeros((1, 1), np.int64)
    expected = session.step(ids, where, wanted).copy()
    session.launch(ids, where, wanted)
    assert np.array_equal(session.collect().logits(0, 0, 1), expected[0])
    assert len(found) == 1 and threading.get_ident() not in found
    assert session.overlaps
