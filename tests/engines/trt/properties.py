"""What every session must do, on the stand-in as on a GPU: three rows, 64 tokens, any dtype.

Each takes the session, its bundle, and the relative L2 distance that its arithmetic may have from
ONNX Runtime's.
"""

from pathlib import Path

import numpy as np

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.session import Session

T, ROWS = 64, 3
ONE = np.zeros((1, 1), np.int64)


def tokens(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 500, (rows, length))


def near(found: np.ndarray, expected: np.ndarray, limit: float) -> None:
    assert np.linalg.norm(found - expected) <= limit * np.linalg.norm(expected)


def whole(bundle: Path, ids: np.ndarray) -> np.ndarray:
    """Logits of ONNX Runtime's own session, every position of every row."""
    with OrtSession.open(bundle, max_batch=len(ids), max_seq_len=T) as session:
        session.bind(T)
        every = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
        return session.step(ids, np.zeros(len(ids), np.int64), every).copy()


def prefill_in_chunks_gives_every_position(session: Session, bundle: Path, limit: float) -> None:
    ids = tokens(ROWS, 21)  # more positions want logits than one chunk gives
    every = np.tile(np.arange(21), (ROWS, 1))
    found = session.step(ids, np.zeros(ROWS, np.int64), every)
    near(found, whole(bundle, ids), limit)


def stepwise_decode_of_ragged_rows_equals_one_pass(
    session: Session, bundle: Path, limit: float
) -> None:
    ids = tokens(ROWS, 20)
    starts = np.array([5, 11, 8])
    for row, start in enumerate(starts):
        session.step(ids[row : row + 1, :start], np.array([0]), np.array([[start - 1]]), row)
    expected = whole(bundle, ids)
    for step in range(9):
        where = starts + step
        found = session.step(
            ids[np.arange(ROWS), where][:, None], where, np.zeros((ROWS, 1), np.int64)
        )
        for row in range(ROWS):
            near(found[row, 0], expected[row, where[row]], limit)


def rows_step_while_others_rest(session: Session, bundle: Path, limit: float) -> None:
    ids = tokens(ROWS, 10)
    session.step(ids[:, :6], np.zeros(ROWS, np.int64), np.full((ROWS, 1), 5))
    resting = session.read_cache(0, "key", 0, 0, 6)
    for index in range(6, 10):
        found = session.step(
            ids[1:, index : index + 1], np.full(2, index), np.zeros((2, 1), int), 1
        )
    near(found[:, 0], whole(bundle, ids)[1:, 9], limit)
    assert (session.read_cache(0, "key", 0, 0, 6) == resting).all()


def a_poisoned_tail_changes_nothing(session: Session, bundle: Path, limit: float) -> None:
    ids, config = tokens(1, 12), session.config
    session.step(ids[:, :11], np.array([0]), np.array([[10]]))
    poison = np.full((config.num_kv_heads, T - 11, config.head_dim), 3e4, np.float32)
    for layer in range(config.num_layers):
        session.write_cache(layer, "key", 0, 11, poison)
        session.write_cache(layer, "value", 0, 11, poison)
    found = session.step(ids[:, 11:], np.array([11]), ONE)
    near(found[0, 0], whole(bundle, ids)[0, 11], limit)


PROPERTIES = (
    prefill_in_chunks_gives_every_position,
    stepwise_decode_of_ragged_rows_equals_one_pass,
    rows_step_while_others_rest,
    a_poisoned_tail_changes_nothing,
)
