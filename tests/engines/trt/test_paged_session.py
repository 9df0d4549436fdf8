"""A session over an engine's pages, on the stand-in: whose pages, how many, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.session import PageView
from nemo_trt.engines.trt import paged_session
from nemo_trt.engines.trt.memory import GRAPH_BYTES
from nemo_trt.engines.trt.paged_session import PagedTensorRtSession
from nemo_trt.engines.trt.profiles import buckets
from nemo_trt.errors import CapacityError, MachineError, RequestError
from nemo_trt.serve import Request, Scheduler
from tests.serve.test_scheduler import alone, answers, drain, ends

from .fake_device import FakeDevice
from .properties import near, tokens, whole
from .standin import ROWS, PagedFakePlan, T, paged_of, plan_of
from .test_session import both_profiles, bundle

pytestmark = pytest.mark.model
__all__ = ["bundle"]

PAGE, PAGES = 16, 7  # a row takes 4 at most, so that three do not fit


def opened_with(bundle: Path, device: FakeDevice, pages: float) -> PagedTensorRtSession:
    """A session on a device that has memory for so many pages, whatever else it holds."""
    from nemo_trt.bundle import Bundle
    from nemo_trt.precision import DType

    size = PAGE * Bundle.open(bundle).config.kv_bytes_per_token(DType.FP16)
    device.free_memory = int(pages * size / 0.95) + 1 + GRAPH_BYTES * len(buckets(ROWS))
    return PagedTensorRtSession(
        bundle,
        both_profiles(bundle, "paged"),
        device=device,
        open_plan=lambda _: plan_of(bundle, device, "paged"),
    )


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def session(bundle: Path, device: FakeDevice) -> Iterator[PagedTensorRtSession]:
    with opened_with(bundle, device, PAGES) as session:
        for address in device.live:  # whatever is read that no row wrote is not finite
            size = session.num_pages * PAGE * session.config.num_kv_heads * session.config.head_dim
            if address in session._cache._addresses.values():
                device.at(address, (size,), np.float16)[...] = np.nan
        yield session


def run(session: PagedTensorRtSession, ids: np.ndarray, starts: Any, ends: Any, table: Any) -> Any:
    """Logits of each row's last token, (B, V)."""
    ends = np.array(ends, np.int32)
    starts = np.array(starts)
    wanted = (ends - starts - 1).astype(np.int64)[:, None]
    view = PageView(np.array(table, np.int32), ends)
    session.launch(ids, starts, wanted, pages=view)
    result = session.collect()
    return np.concatenate([result.logits(row, 0, 1) for row in range(len(ids))])


def test_rows_have_the_pages_that_their_caller_says(
    session: PagedTensorRtSession, bundle: Path
) -> None:
    """Padded prefill, decode of fewer rows than a profile has, pages in any order."""
    assert (session.page_tokens, session.num_pages) == (PAGE, PAGES)
    ids = tokens(2, 30)
    expected = whole(bundle, ids)
    table = [[5, 2], [0, 6]]  # what follows a row's last page means nothing
    found = run(session, ids[:, :20], [0, 0], [20, 11], [[5, 2], [0, -9]])
    near(found[0], expected[0, 19], 5e-3)
    near(found[1], expected[1, 10], 5e-3)
    for at in range(9):
        step = np.stack([ids[0, [20 + at]], ids[1, [11 + at]]])
        found = run(session, step, [20 + at, 11 + at], [21 + at, 12 + at], table)
        near(found[0], expected[0, 20 + at], 5e-3)
        near(found[1], expected[1, 11 + at], 5e-3)


def test_rows_of_a_profile_that_nobody_asked_for_touch_no_page(
    bundle: Path, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_session, "buckets", lambda rows: (rows,))
    ids = tokens(1, 12)
    with opened_with(bundle, device, PAGES) as session:
        run(session, ids[:, :11], [0], [11], [[0]])
        for page in range(1, PAGES):
            session.copy_page(0, page)
        before = device.memory.copy()
        near(run(session, ids[:, 11:], [11], [12], [[4]])[0], whole(bundle, ids)[0, 11], 5e-3)
        changed = np.flatnonzero(before != device.memory)
        for address in session._cache._addresses.values():
            size = session._cache._block_bytes("past_key_values.0.key")
            first, last = address + 4 * size, address + 5 * size
            pool = changed[(changed >= address) & (changed < address + PAGES * size)]
            assert len(pool) and first <= pool.min() <= pool.max() < last


def test_rows_read_the_pages_that_they_share(session: PagedTensorRtSession, bundle: Path) -> None:
    ids = np.repeat(tokens(1, 24), 2, axis=0)
    ids[1, 16:] = tokens(2, 24)[1, 16:]
    expected = whole(bundle, ids)
    run(session, ids[:1, :17], [0], [17], [[3, 1]])
    near(run(session, ids[1:, 16:], [16], [24], [[3, 4]])[0], expected[1, 23], 5e-3)
    near(run(session, ids[:1, 17:], [17], [24], [[3, 1]])[0], expected[0, 23], 5e-3)


def test_a_layer_with_fp8_pages_stores_numbers_over_its_scales(
    bundle: Path, device: FakeDevice
) -> None:
    paged = paged_of(bundle, {1: (0.011, 0.007)})
    record = replace(both_profiles(bundle, "paged"), paged=paged)
    plan = PagedFakePlan(bundle, device, paged)
    with PagedTensorRtSession(bundle, record, device=device, open_plan=lambda _: plan) as session:
        wide, narrow = (session._cache._block_bytes(f"past_key_values.{n}.key") for n in (0, 1))
        assert wide == 2 * narrow
        config, random = session.config, np.random.default_rng(0)
        shape = (config.num_kv_heads, 21, config.head_dim)
        block = random.normal(size=shape).astype(np.float32)
        for layer, kind, scale in ((1, "key", 0.011), (1, "value", 0.007), (0, "key", None)):
            session.write_cache(layer, kind, 2, 5, block)
            stored = stored_of(block, scale) if scale else block.astype(np.float16)
            assert (session.read_cache(layer, kind, 2, 5, 26) == stored).all()
        session.copy_cache(2, 0, 26)
        assert (session.read_cache(1, "value", 0, 5, 26) == stored_of(block, 0.007)).all()
        ids = tokens(1, 12)
        run(session, ids[:, :11], [0], [11], [[6]])
        session.copy_page(6, 2)
        found = run(session, ids[:, 11:], [11], [12], [[2]])[0]
        expected = whole(bundle, ids)[0, 11]
        near(found, expected, 0.2)
        assert np.linalg.norm(found - expected) > 1e-3 * np.linalg.norm(expected), "it was rounded"


def stored_of(block: np.ndarray, scale: float) -> np.ndarray:
    """What an FP8 page gives back."""
    ratio = np.clip(block / np.float32(scale), -448, 448)
    return ratio.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale)


def test_a_page_is_copied_on_the_device(
    session: PagedTensorRtSession, device: FakeDevice, bundle: Path
) -> None:
    ids = tokens(1, 12)
    run(session, ids[:, :11], [0], [11], [[6]])
    before = device.calls["bytes down"]
    session.copy_page(6, 2)
    assert device.calls["bytes down"] == before
    near(run(session, ids[:, 11:], [11], [12], [[2]])[0], whole(bundle, ids)[0, 11], 5e-3)


def test_a_rows_beginning_is_copied_on_the_device(bundle: Path, device: FakeDevice) -> None:
    with opened_with(bundle, device, 100) as session:
        assert session.num_pages == ROWS * T // PAGE
        config = session.config
        shape = (config.num_kv_heads, 21, config.head_dim)
        block = np.random.default_rng(0).normal(size=shape).astype(np.float16).astype(np.float32)
        session.write_cache(1, "value", 2, 0, block)
        before = device.calls["bytes down"]
        session.copy_cache(2, 0, 19)
        assert device.calls["bytes down"] == before
        assert (session.read_cache(1, "value", 0, 0, 19) == block[:, :19]).all()
        assert not session.read_cache(1, "value", 0, 19, T).any()
        assert not session.read_cache(1, "value", 1, 0, T).any()


def test_what_is_no_page_of_a_row_never_reaches_the_device(session: PagedTensorRtSession) -> None:
    ids = tokens(1, 20)
    for table in ([[0, PAGES]], [[-1, 0]]):
        with pytest.raises(RequestError, match="Pages must be 0 to 6"):
            run(session, ids, [0], [20], table)
    with pytest.raises(RequestError, match="a page for every token"):
        run(session, ids, [0], [20], [[0]])
    with pytest.raises(RequestError, match="1 to 3 rows, got 4"):
        run(session, tokens(4, 1), [0] * 4, [1] * 4, [[0], [1], [2], [3]])
    with pytest.raises(CapacityError, match="at most 64 tokens, got 65"):
        run(session, ids[:, :1], [64], [65], [[0, 1, 2, 3, 4]])
    with pytest.raises(CapacityError, match="3 rows of 64 tokens must have 12 pages, got 7"):
        session.read_cache(0, "key", 0, 0, T)


def test_a_gpu_without_memory_for_one_row_is_refused(bundle: Path, device: FakeDevice) -> None:
    with pytest.raises(MachineError, match=r"row of 64 tokens, 4 pages .* has memory for 3"):
        opened_with(bundle, device, 3.5)
    assert device.closed and not device.live


def test_the_scheduler_shares_and_preempts_on_an_engines_pages(
    session: PagedTensorRtSession, bundle: Path
) -> None:
    """Answers are those of one row on ONNX Runtime, whoever is beside it."""
    random = np.random.default_rng(2)
    ids = random.integers(0, 500, 200).tolist()
    scheduler, requests, outputs = Scheduler(session, prefill_tokens=13), {}, []
    for number in range(9):
        start, length = int(random.integers(0, 90)), int(random.integers(1, 14))
        prompt = ids[:18] * bool(number % 2) + ids[start : start + length]
        params = SamplingParams(max_tokens=int(random.integers(4, 30)), ignore_eos=True)
        requests[scheduler.submit(Request(prompt=prompt, params=params))] = prompt, params
        for _ in range(int(random.integers(0, 4))):
            outputs.extend(scheduler.step())
    outputs.extend(drain(scheduler))
    found = ends(outputs)
    assert any(ended.usage.preemptions for ended in found.values())
    assert any(ended.usage.cached_tokens >= 16 for ended in found.values())
    with Runner(OrtSession.open(bundle, max_batch=1, max_seq_len=T, threads=1)) as runner:
        for number, (prompt, params) in requests.items():
            assert found[number].reason == "length"
            assert answers(outputs)[number] == alone(runner, prompt, params)
