"""Records, percentiles and rates, on times that a test writes down."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_trt.serve.load import LoadOptions, LoadResult, Record, summarise
from nemo_trt.serve.load.probe import Server
from nemo_trt.serve.load.summary import spread
from nemo_trt.serve.load.workload import Scale

pytestmark = pytest.mark.unit

OPTIONS = LoadOptions(url="http://x", concurrency=1, num_requests=1)


def record(**fields: Any) -> Record:
    given = {"index": 0, "intended_s": 1.0, "planned_output_tokens": 4, "outcome": "ok"}
    return Record(**(given | fields))


def result(records: Sequence[Record], duration_s: float = 10.0, **options: Any) -> LoadResult:
    return LoadResult(
        options=replace(OPTIONS, **options),
        server=Server(model="m", include_usage=True, scale=Scale(), product=None),
        records=list(records),
        started_at=0.0,
        duration_s=duration_s,
        loop_lag_s=[0.0],
        cpu_share=0.0,
        broken_off=False,
    )


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=200))
def test_percentiles_are_the_standard_librarys(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    expected = [cuts[at - 1] for at in (50, 90, 95, 99)]
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx(expected, abs=1e-6)
    assert (found.max, found.count) == (max(values), len(values))
    assert found.mean == pytest.approx(statistics.fmean(values))


def test_nothing_has_no_spread() -> None:
    assert spread([None]) is None


def test_latencies_count_from_when_a_request_was_due() -> None:
    one = record(sent_s=3.0, chunk_s=[4.0, 6.0], end_s=7.0, output_tokens=2)
    assert (one.lateness_s, one.ttft_s, one.latency_s) == (2.0, 3.0, 6.0)
    assert (one.itl_s, one.tpot_s) == ([2.0], 2.0)


def test_tokens_that_come_together_come_zero_apart() -> None:
    one = record(chunk_s=[2.0, 5.0, 6.0], output_tokens=7, counted_by="usage")
    assert sorted(one.itl_s) == [0, 0, 0, 0, 1, 3]
    assert one.gaps_s == [3.0, 1.0]
    assert one.tpot_s == pytest.approx(statistics.fmean(one.itl_s)) == pytest.approx(4 / 6)


def test_an_end_token_comes_when_the_server_says_that_the_answer_ended() -> None:
    one = record(chunk_s=[2.0, 5.0], finish_s=9.0, output_tokens=3, counted_by="usage")
    assert (one.itl_s, one.gaps_s, one.tpot_s) == ([3.0, 4.0], [3.0], 3.5)


def test_a_finish_that_follows_the_last_token_is_no_token() -> None:
    one = record(chunk_s=[2.0, 5.0], finish_s=9.0, output_tokens=2, counted_by="usage")
    assert (one.itl_s, one.tpot_s) == ([3.0], 3.0)


@given(
    st.lists(st.floats(1, 100), min_size=1, max_size=20).map(sorted),
    st.integers(0, 30),
    st.booleans(),
)
def test_times_between_tokens_are_one_fewer_than_tokens_and_add_up(
    times: list[float], more: int, finished: bool
) -> None:
    finish = times[-1] + 1 if finished else None
    tokens = len(times) + more
    one = record(chunk_s=times, finish_s=finish, output_tokens=tokens, counted_by="usage")
    assert len(one.itl_s) == tokens - 1
    assert sum(one.itl_s) == pytest.approx((one.tpot_s or 0) * (tokens - 1))


def test_an_answer_without_tokens_has_no_times() -> None:
    one = record(finish_s=2.0, end_s=2.0, output_tokens=1)
    assert (one.ttft_s, one.tpot_s, one.itl_s, one.gaps_s) == (None, None, [], [])


def test_rates_count_what_was_answered_over_the_whole_time() -> None:
    records = [
        record(chunk_s=[2.0, 3.0], end_s=3.0, output_tokens=2, prompt_tokens=10),
        record(chunk_s=[2.0], end_s=3.0, outcome="cancelled", prompt_tokens=None),
        record(end_s=3.0, outcome="rejected", status=429, retry_after_s=2.0),
        record(end_s=3.0, outcome="rejected", status=429),
        record(end_s=3.0, outcome="error", status=500),
        record(end_s=3.0, outcome="error", status=None),
        record(outcome="unfinished", chunk_s=[2.0]),
    ]
    found = summarise(result(records, duration_s=4.0))
    assert found.outcomes == {
        "ok": 1, "cancelled": 1, "rejected": 2, "error": 2, "unfinished": 1
    }  # fmt: skip
    assert (found.errors, found.num_failed) == ({"500": 1, "no answer": 1}, 2)
    assert (found.rejected, found.retry_after) == (2, 1)
    assert (found.requests_per_s, found.output_tokens) == (0.25, 4)
    assert (found.output_tokens_per_s, found.total_tokens_per_s) == (1.0, 3.5)
    assert found.ttft_s is not None and found.ttft_s.count == 1
    assert found.latency_s is not None and found.latency_s.count == 1


def test_goodput_asks_for_both_limits_and_holds_refusals_against_the_server() -> None:
    records = [
        record(chunk_s=[1.5, 2.5], end_s=3.0, output_tokens=2),  # both within
        record(chunk_s=[3.5, 4.0], end_s=4.0, output_tokens=2),  # first token too late
        record(chunk_s=[1.5, 9.0], end_s=9.0, output_tokens=2),  # too slow
        record(end_s=3.0, outcome="rejected", status=429),
        record(outcome="cancelled", chunk_s=[1.1]),
    ]
    found = summarise(result(records, slo_ttft_s=1.0, slo_itl_s=2.0)).goodput
    assert found is not None
    assert (found.good, found.share, found.per_s) == (1, 0.25, 0.1)
    assert summarise(result(records)).goodput is None


def test_the_report_says_no_key() -> None:
    options = replace(OPTIONS, api_key="secret")
    assert "secret" not in repr(options) and "secret" not in str(options.describe())


def test_percentiles_match_numpys_on_a_long_tail() -> None:
    values = np.random.default_rng(0).lognormal(0, 2, 1001)
    found = spread(values.tolist())
    assert found is not None
    assert found.p99 == pytest.approx(np.percentile(values, 99))
