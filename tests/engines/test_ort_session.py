"""The ONNX Runtime session: cache in place, rows as views, growth, and errors before any write."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.errors import BundleError, CapacityError, RequestError, StateError

pytestmark = pytest.mark.model

TOKENS = np.random.default_rng(3).integers(0, 512, (2, 20))
START = np.zeros(2, np.int64)


@pytest.fixture
def session(tiny: Any) -> Iterator[OrtSession]:
    with OrtSession.open(tiny.bundle, max_batch=2, max_seq_len=1024, threads=1) as session:
        yield session


def every_position(tokens: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


def whole(session: OrtSession, tokens: np.ndarray, first_row: int = 0) -> np.ndarray:
    session.bind(tokens.shape[1])
    where = np.zeros(len(tokens), np.int64)
    return session.step(tokens, where, every_position(tokens), first_row).copy()


def test_stepwise_decode_equals_one_pass(session: OrtSession) -> None:
    expected = whole(session, TOKENS)
    for index in range(TOKENS.shape[1]):
        found = session.step(TOKENS[:, [index]], START + index, np.zeros((2, 1), np.int64))
        np.testing.assert_allclose(found[:, 0], expected[:, index], rtol=1e-4, atol=1e-5)


def test_chunked_prefill_equals_whole(session: OrtSession) -> None:
    expected = whole(session, TOKENS)
    for start in range(0, 20, 7):
        piece = TOKENS[:, start : start + 7]
        found = session.step(piece, START + start, every_position(piece))
        np.testing.assert_allclose(found, expected[:, start : start + 7], rtol=1e-4, atol=1e-5)


def test_one_row_runs_alone_and_leaves_the_other_untouched(session: OrtSession) -> None:
    expected = whole(session, TOKENS)
    before = session.read_cache(1, "value", 0, 0, 20)
    alone = whole(session, TOKENS[1:], first_row=1)
    np.testing.assert_allclose(alone[0], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(session.read_cache(1, "value", 0, 0, 20), before)


def test_a_poisoned_tail_changes_nothing(session: OrtSession) -> None:
    expected = whole(session, TOKENS)
    config = session.config
    for layer in range(config.num_layers):
        for kind in ("key", "value"):
            for row in range(2):
                block = np.full((config.num_kv_heads, session.capacity - 10, config.head_dim), 1e4)
                session.write_cache(layer, kind, row, 10, block.astype(np.float32))
    found = session.step(TOKENS[:, 10:], START + 10, every_position(TOKENS[:, 10:]))
    np.testing.assert_allclose(found, expected[:, 10:], rtol=1e-4, atol=1e-5)


def test_growth_keeps_what_the_cache_holds(session: OrtSession) -> None:
    expected = whole(session, TOKENS)
    session.step(TOKENS[:, :19], START, np.zeros((2, 1), np.int64))
    small = session.capacity
    session.bind(small + 1)
    assert small < session.capacity <= session.max_seq_len
    found = session.step(TOKENS[:, 19:], START + 19, np.zeros((2, 1), np.int64))
    np.testing.assert_allclose(found[:, 0], expected[:, 19], rtol=1e-4, atol=1e-5)


def test_a_step_writes_the_cache_in_place(session: OrtSession) -> None:
    addresses = {name: cache.ctypes.data for name, cache in session._caches.items()}
    whole(session, TOKENS)
    assert {name: cache.ctypes.data for name, cache in session._caches.items()} == addresses
    assert np.abs(session.read_cache(0, "key", 1, 0, 20)).min(axis=(0, 2)).all()
    assert not session.read_cache(0, "key", 1, 20, 30).any()


def test_a_decode_step_reuses_its_buffers(session: OrtSession) -> None:
    whole(session, TOKENS)
    one = np.zeros((2, 1), np.int64)
    first = session.step(TOKENS[:, :1], START + 20, one)
    buffers = set(map(id, session._buffers.values()))
    second = session.step(TOKENS[:, :1], START + 21, one)
    assert first is second
    assert set(map(id, session._buffers.values())) == buffers


def test_overflow_is_refused_before_anything_is_written(session: OrtSession) -> None:
    whole(session, TOKENS)
    before = session.read_cache(0, "key", 0, 0, session.capacity)
    with pytest.raises(CapacityError, match="bound"):
        session.step(TOKENS, START + session.capacity - 5, every_position(TOKENS))
    with pytest.raises(CapacityError, match="1024"):
        session.bind(1025)
    np.testing.assert_array_equal(session.read_cache(0, "key", 0, 0, session.capacity), before)


def test_a_row_that_does_not_exist_is_refused(session: OrtSession) -> None:
    with pytest.raises(RequestError, match="0 to 1"):
        session.step(TOKENS, START, every_position(TOKENS), first_row=1)


def test_two_sessions_share_nothing(session: OrtSession, tiny: Any) -> None:
    expected = whole(session, TOKENS)
    with OrtSession.open(tiny.bundle, max_batch=2, max_seq_len=64, threads=1) as other:
        whole(other, TOKENS[::-1].copy())
        found = session.step(TOKENS[:, 10:], START + 10, every_position(TOKENS[:, 10:]))
    np.testing.assert_allclose(found, expected[:, 10:], rtol=1e-4, atol=1e-5)


def test_a_closed_session_says_so(tiny: Any) -> None:
    session = OrtSession.open(tiny.bundle, threads=1)
    session.close()
    session.close()
    with pytest.raises(StateError, match="closed"):
        session.bind(10)


def test_an_altered_weight_file_is_refused(tiny: Any, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(tiny.bundle, copy)
    weights = next((copy / "weights").iterdir())
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="altered"):
        OrtSession.open(copy)
