"""Load on a real server whose delays are known."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from nemo_trt.errors import RequestError, ServerError
from nemo_trt.serve.load import LoadOptions, LoadResult, Record, parse_lengths, run_load, summarise
from nemo_trt.serve.load.client import Client

from .conftest import DONE, Seen, event, plain, stream, text, usage

pytestmark = pytest.mark.unit


def load(url: str, **options: Any) -> LoadResult:
    given: dict[str, Any] = {"num_requests": 4, "output_tokens": parse_lengths("3")}
    if "rate" not in options:
        given["concurrency"] = 2
    return asyncio.run(run_load(LoadOptions(url=url, **(given | options))))


def test_times_lie_between_what_the_server_did_and_what_it_waited(stub: Any) -> None:
    first, between, last = 0.15, 0.1, 0.2

    async def slow(seen: Seen) -> Response:
        if seen.body["max_tokens"] == 1:
            return await plain(seen)
        return stream(
            seen, first, text("a"), between, text("b"), between, text("c"), last,
            text("", "length"), usage(8, 3), DONE,
        )  # fmt: skip

    zero = time.perf_counter()
    with stub(slow) as server:
        result = load(server.url, concurrency=1, num_requests=3, num_warmup=0)
    after = time.perf_counter() - zero
    assert [record.outcome for record in result.records] == ["ok"] * 3
    for record, seen in zip(result.records, server.measured, strict=True):
        assert record.sent_s is not None and record.ttft_s is not None
        assert first <= record.ttft_s < after
        assert len(record.chunk_s) == 3  # neither the finish nor the usage is a token
        assert record.latency_s is not None
        assert record.latency_s >= first + 2 * between + last
        # Both clocks are this process's: their difference is the same for every event.
        offset = seen.received - record.sent_s
        for at, came in enumerate(record.chunk_s):
            assert seen.sent[at] <= came + offset
        assert (record.prompt_tokens, record.output_tokens, record.counted_by) == (8, 3, "usage")
        assert sum(record.itl_s) >= 2 * between * 0.9
        assert record.tpot_s == pytest.approx((record.chunk_s[2] - record.chunk_s[0]) / 2)


def test_a_token_in_the_same_bytes_as_others_is_apart_from_them_by_nothing(stub: Any) -> None:
    async def bunched(seen: Seen) -> Response:
        if seen.body["max_tokens"] == 1:
            return await plain(seen)
        tokens = text("a") + text("b")
        return stream(seen, tokens, 0.1, text("c and d"), text("", "stop"), usage(8, 4), DONE)

    with stub(bunched) as server:
        (record,) = load(server.url, concurrency=1, num_requests=1).records
    assert len(record.itl_s) == 3 and record.itl_s[0] == 0.0
    assert record.tpot_s == pytest.approx(sum(record.itl_s) / 3)


def test_a_generator_that_is_late_does_not_shorten_the_latencies(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_send = Client.send
    blocked = 0.3

    async def send(self: Client, record: Any, body: Any) -> None:
        if record.index == 0:
            time.sleep(blocked)  # the loop stands still: what is due then is sent late
        await really_send(self, record, body)

    monkeypatch.setattr(Client, "send", send)
    with stub(plain) as server:
        result = load(server.url, rate=100.0, arrivals="constant", num_requests=5, num_warmup=0)
    assert [record.intended_s for record in result.records] == [0.0, 0.01, 0.02, 0.03, 0.04]
    for record in result.records[1:]:
        assert record.lateness_s is not None and record.lateness_s >= blocked - 0.05
        assert record.ttft_s is not None and record.ttft_s >= record.lateness_s
    found = summarise(result)
    assert found.lateness_s is not None and found.lateness_s.max >= blocked - 0.05
    assert found.loop_lag_s is not None and found.loop_lag_s.max >= blocked - 0.05


def test_an_open_loop_does_not_wait_for_answers(stub: Any) -> None:
    release = asyncio.Event()
    arrived = 0

    async def held(seen: Seen) -> Response:
        nonlocal arrived
        if seen.body["max_tokens"] > 1:
            arrived += 1
            if arrived == 6:
                release.set()
            await release.wait()  # until the last has come: a closed loop would hang here
        return await plain(seen)

    with stub(held) as server:
        result = load(server.url, rate=200.0, num_requests=6, num_warmup=0, timeout_s=60)
    assert [record.outcome for record in result.records] == ["ok"] * 6


def test_a_closed_loop_has_as_many_on_the_way_as_it_has_clients(stub: Any) -> None:
    running = most = 0

    async def counted(seen: Seen) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return await plain(seen)

    with stub(counted) as server:
        result = load(server.url, concurrency=3, num_requests=12, num_warmup=3)
    assert most == 3 and len(result.records) == 12


def test_no_figure_contains_the_warm_up(stub: Any) -> None:
    count = 0

    async def cold(seen: Seen) -> Response:
        nonlocal count
        count += seen.body["max_tokens"] > 1
        if seen.body["max_tokens"] > 1 and count <= 3:
            await asyncio.sleep(0.5)
        return await plain(seen)

    with stub(cold) as server:
        start = time.perf_counter()
        result = load(server.url, num_warmup=3, num_requests=5)
        whole = time.perf_counter() - start
        assert len(server.measured) == 8
    assert [record.index for record in result.records] == list(range(5))
    assert summarise(result).output_tokens == 15
    assert result.duration_s <= whole - 2 * 0.5  # two clients warmed up with three requests


def test_sending_ends_with_the_duration(stub: Any) -> None:
    with stub(plain) as server:
        opened = load(server.url, rate=50.0, num_requests=None, duration_s=0.4)
        closed = load(server.url, num_requests=None, duration_s=0.4)
    for result in (opened, closed):
        assert result.records and all(record.outcome == "ok" for record in result.records)
        assert max(record.intended_s for record in result.records) < 0.4
    assert opened.records[-1].index > 3


def test_a_prompts_length_is_met_by_the_servers_own_count(stub: Any) -> None:
    with stub(plain) as server:
        result = load(server.url, prompt_tokens=parse_lengths("50"))
    assert result.server.scale.measured
    assert (result.server.scale.fixed, result.server.scale.per_word) == pytest.approx((3, 1))
    assert [record.prompt_tokens for record in result.records] == [50] * 4


def test_without_a_usage_pieces_are_counted_and_it_is_said(stub: Any) -> None:
    async def counts_nothing(seen: Seen) -> Response:
        if "stream_options" in seen.body:
            return JSONResponse({"error": {"message": "what is stream_options?"}}, 400)
        return stream(seen, text("a"), text("b"), text("", "stop"), DONE)

    with stub(counts_nothing) as server:
        result = load(server.url)
    assert not result.server.include_usage and not result.server.scale.measured
    assert {(record.output_tokens, record.counted_by) for record in result.records} == {
        (2, "chunks")
    }
    assert summarise(result).counted_by_chunks == 4


def test_requests_that_hang_up_are_counted_apart(stub: Any) -> None:
    async def endless(seen: Seen) -> Response:
        if seen.body["max_tokens"] == 1:
            return await plain(seen)
        return stream(seen, *[text("a"), 0.002] * 500, DONE)

    with stub(endless) as server:
        result = load(server.url, cancel_fraction=1.0, num_warmup=0, num_requests=6)
    assert {record.outcome for record in result.records} == {"cancelled"}
    for record, seen in zip(result.records, server.measured, strict=False):
        assert record.tokens <= 3
        assert len(seen.sent) < 500
    found = summarise(result)
    assert found.ttft_s is None and found.num_failed == 0


def test_a_refusal_is_no_failure_and_the_client_waits_as_it_is_told(stub: Any) -> None:
    count = 0

    async def full(seen: Seen) -> Response:
        nonlocal count
        count += seen.body["max_tokens"] > 1
        if count == 1:
            headers = {"Retry-After": "1"}
            return JSONResponse({"error": {"message": "full"}}, 429, headers=headers)
        return await plain(seen)

    with stub(full) as server:
        result = load(server.url, concurrency=1, num_requests=2, num_warmup=0)
    refused, answered = result.records
    assert (refused.outcome, refused.status, refused.retry_after_s) == ("rejected", 429, 1.0)
    assert (answered.outcome, refused.error) == ("ok", "full")
    assert answered.intended_s - (refused.end_s or 0) >= 0.99
    found = summarise(result)
    assert (found.rejected, found.retry_after, found.num_failed) == (1, 1, 0)


def failing(*parts: bytes | float) -> Callable[[Seen], Any]:
    async def answer(seen: Seen) -> Response:
        return await plain(seen) if seen.body["max_tokens"] == 1 else stream(seen, *parts)

    return answer


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((text("a"),), "before the answer was complete"),
        ((text("a"), event(error={"message": "fell\nover"})), "in the stream: fell over"),
        ((text("a"), b"data: {oops\n\n"), "no JSON"),
        ((text("a"), b"data: 7\n\n"), "no object"),
        ((text("a"), event(choices=[7])), "no object"),
        ((text("a"), 60.0, DONE), "within 2 s"),
    ],
)
def test_an_answer_that_breaks_off_has_failed(stub: Any, parts: Any, words: str) -> None:
    with stub(failing(*parts)) as server:
        result = load(server.url, num_requests=1, num_warmup=0, timeout_s=2.0)
    (record,) = result.records
    assert record.outcome == "error" and record.status == 200
    assert words in (record.error or "")
    assert summarise(result).errors == {"200": 1}


def test_an_error_of_the_server_has_failed_with_its_words(stub: Any) -> None:
    async def broken(seen: Seen) -> Response:
        if seen.body["max_tokens"] == 1:
            return await plain(seen)
        return Response("no\nroute", 500)

    with stub(broken) as server:
        result = load(server.url)
    assert {(record.status, record.error) for record in result.records} == {(500, "no route")}
    assert summarise(result).errors == {"500": 4}


def test_a_server_that_hangs_up_has_given_no_answer(stub: Any) -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def against_it() -> Any:
        server = await asyncio.start_server(hangs_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        options = LoadOptions(url=f"http://127.0.0.1:{port}", concurrency=1, num_requests=1)
        async with server, Client(options) as client:
            record = Record(index=0, intended_s=0.0, planned_output_tokens=1)
            await client.send(record, {})
            return record

    record = asyncio.run(against_it())
    assert (record.outcome, record.status) == ("error", None)


def test_what_is_stopped_gives_what_there_is(stub: Any) -> None:
    async def until_stopped(url: str, seen: list[Seen]) -> LoadResult:
        stop = asyncio.Event()
        options = LoadOptions(
            url=url, concurrency=2, num_requests=50, num_warmup=0, output_tokens=parse_lengths("3")
        )
        running = asyncio.create_task(run_load(options, stop=stop))
        while len(seen) < 2 + 4:  # the probe's two
            await asyncio.sleep(0.01)
        stop.set()
        return await running

    count = 0

    async def some(seen: Seen) -> Response:
        nonlocal count
        count += seen.body["max_tokens"] > 1
        if count > 2:
            return stream(seen, text("a"), 60.0, DONE)
        return await plain(seen)

    with stub(some) as server:
        result = asyncio.run(until_stopped(server.url, server.seen))
    assert result.broken_off
    outcomes = sorted(record.outcome for record in result.records)  # any two came first
    assert outcomes == ["ok", "ok", "unfinished", "unfinished"]
    assert summarise(result).num_failed == 0


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, ServerError, "API key"),
        (404, ServerError, "must have the model 'other'"),
        (400, RequestError, "must accept"),
        (500, ServerError, "first request"),
    ],
)
def test_a_server_that_refuses_the_first_request_is_told_of(
    stub: Any, status: int, error: type[Exception], words: str
) -> None:
    async def refuse(seen: Seen) -> Response:
        return JSONResponse({"error": {"message": "because"}}, status)

    with stub(refuse) as server, pytest.raises(error, match=rf"{words}.*because"):
        load(server.url, model="other")


def test_a_server_that_is_not_there_is_told_of() -> None:
    with pytest.raises(ServerError, match="must be the address of a server that answers"):
        load("http://127.0.0.1:9")


def test_the_key_is_sent(stub: Any) -> None:
    with stub(plain) as server:
        load(server.url, api_key="secret")
    assert {seen.headers["authorization"] for seen in server.seen} == {"Bearer secret"}
