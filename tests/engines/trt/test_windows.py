"""Decode windows: every span is covered, cheaply, and nothing that a row holds is written over."""

import itertools
import random

import pytest

from nemo_trt.engines.trt.engine_record import BuildOptions
from nemo_trt.engines.trt.profiles import PREFILL, buckets, decode_names, is_decode, profile_named
from nemo_trt.engines.trt.windows import Window, Windows

pytestmark = pytest.mark.unit

OPTIONS = BuildOptions(
    target="l4", sm=89, max_seq_len=64, max_batch=6, prefill_chunk=8, max_logits=4
)


@pytest.mark.parametrize(
    ("max_batch", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))],
)
def test_buckets_are_powers_of_two_and_all_rows(max_batch: int, expected: tuple[int, ...]) -> None:
    assert buckets(max_batch) == expected
    assert decode_names(max_batch) == tuple(f"decode-{rows}" for rows in expected)
    assert not is_decode(PREFILL) and all(map(is_decode, decode_names(max_batch)))


def test_a_decode_profile_has_one_number_of_rows_and_one_token() -> None:
    profile = profile_named("decode-4", OPTIONS)
    assert profile.rows == 4 and profile.least == profile.best == profile.most
    assert set(profile.most.values()) == {(4, 1), (4,)}
    prefill = profile_named(PREFILL, OPTIONS)
    assert (prefill.rows, prefill.least["input_ids"], prefill.most["input_ids"]) == (
        1,
        (1, 1),
        (1, 8),
    )
    assert prefill.most["logit_indices"] == (1, 4)


@pytest.mark.parametrize("max_batch", [*range(1, 18), 32])
def test_windows_are_of_buckets_and_few(max_batch: int) -> None:
    windows = list(Windows(max_batch, weight_bytes=1, row_bytes=1))
    assert len(set(windows)) == len(windows) < 2 * max_batch
    assert {window.rows for window in windows} == set(buckets(max_batch))
    assert all(window.first >= 0 and window.stop <= max_batch for window in windows)
    assert {window.first for window in windows if window.rows == 1} == set(range(max_batch))


@pytest.mark.parametrize("max_batch", [1, 2, 3, 6, 7, 8])
def test_every_span_is_covered_once_and_full_rows_beside_it_are_left_alone(max_batch: int) -> None:
    windows = Windows(max_batch, weight_bytes=1000, row_bytes=1)
    known = set(windows)
    chosen = random.Random(0)
    for first, stop in itertools.combinations(range(max_batch + 1), 2):
        for _ in range(8):
            full = frozenset(row for row in range(max_batch) if chosen.random() < 0.3)
            cover = windows.cover(first, stop, full)
            assert set(cover) <= known
            rows = [row for window in cover for row in range(window.first, window.stop)]
            assert len(rows) == len(set(rows)) and set(range(first, stop)) <= set(rows)
            assert not (set(rows) - set(range(first, stop))) & full


def test_the_fewest_bytes_decide() -> None:
    """Rows 3 and 4 of 8: all eight in one run, or two runs of one row."""
    heavy = Windows(8, weight_bytes=100, row_bytes=1)
    assert heavy.cover(3, 5, frozenset()) == (Window(0, 8),)
    assert heavy.cover(2, 4, frozenset()) == (Window(2, 2),)
    assert heavy.cover(0, 3, frozenset()) == (Window(0, 4),)
    assert heavy.cover(0, 3, frozenset({3})) == (Window(0, 2), Window(2, 1))
    long = Windows(8, weight_bytes=100, row_bytes=100)
    assert long.cover(3, 5, frozenset()) == (Window(3, 1), Window(4, 1))
