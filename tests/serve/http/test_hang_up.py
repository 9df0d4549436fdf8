"""Clients that leave and requests whose time is over: their slots are free at once."""

import asyncio
import json
import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nemo_trt.serve import ServeOptions, create_app
from nemo_trt.serve.grammar_trial import GrammarTrial
from tests.waiting import LIMIT_S, until, until_async

pytestmark = pytest.mark.model

LONG = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "n": 3}


@pytest.fixture
def client(shallow: Any, served: Any) -> Iterator[httpx.Client]:
    """Two slots, so that the third of three answers waits."""
    options = ServeOptions(allow_unvalidated=True, log_text=True)
    app = create_app(shallow.bundle, options=options, max_batch=2, max_seq_len=512)
    with served(app) as url:
        app.state.service.wait()
        with httpx.Client(base_url=url, timeout=LIMIT_S) as found:
            yield found


def value(client: httpx.Client, name: str) -> float:
    """A metric's value; 0 where it is not there yet."""
    found = re.search(rf"^nemo_trt_{re.escape(name)} (\S+)$", client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0


def wait_for(client: httpx.Client, name: str, wanted: float) -> None:
    """Until a metric has this value."""
    until(lambda: value(client, name) == wanted)


def logged(caplog: pytest.LogCaptureFixture, count: int) -> list[dict[str, Any]]:
    """The log's lines of this many POST requests; each is written after its answer."""

    def posts() -> list[dict[str, Any]]:
        lines = [json.loads(r.message) for r in caplog.records if r.name == "nemo_trt.serve"]
        return [line for line in lines if line["method"] == "POST"]

    until(lambda: len(posts()) == count)
    return posts()


def all_three_are_gone(client: httpx.Client) -> bool:
    wait_for(client, 'requests_total{end="cancelled"}', 3)
    assert value(client, "requests_running") == value(client, "requests_waiting") == 0
    # 1,200 tokens had been asked for.
    return value(client, "generation_tokens_total") < 600


def test_a_stream_that_nobody_reads_is_cancelled(client: httpx.Client) -> None:
    with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as answer:
        assert next(answer.iter_lines()).startswith("data: {")
    assert all_three_are_gone(client)


def test_a_client_that_does_not_wait_for_its_answer_cancels_it(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nemo_trt.serve")
    with httpx.Client(base_url=client.base_url) as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.post("/v1/completions", json=LONG, timeout=httpx.Timeout(60, read=0.5))
    assert all_three_are_gone(client)
    (line,) = logged(caplog, 1)
    assert (line["status"], line["end"]) == (499, "disconnected")


def test_a_client_that_leaves_ends_the_compilation_of_its_grammar(
    tekken_bundle: Path, served: Any
) -> None:
    options = ServeOptions(allow_unvalidated=True)
    app = create_app(tekken_bundle, options=options, max_batch=2, max_seq_len=512)
    service = app.state.service
    service._trial = GrammarTrial(cpu_s=3600)  # by itself this one ends in an hour
    endless = {"type": "integer", "multipleOf": 9_999_991}
    asked = {"prompt": "x", "max_tokens": 4, "guided_json": endless}

    async def leave(url: str) -> Any:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as client:
            waiting = asyncio.create_task(client.post("/v1/completions", json=asked))
            await until_async(lambda: service._trial._child is not None)
            child = service._trial._child
            waiting.cancel()
            await until_async(lambda: child.returncode is not None)
            return child

    with served(app) as url:
        service.wait()
        child = asyncio.run(leave(url))
        assert child.returncode == -signal.SIGKILL
        until(lambda: service.compilers._pending == 0)
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            answer = client.post("/v1/completions", json=asked | {"guided_json": {"type": "null"}})
            assert answer.json()["choices"][0]["text"].startswith("n")
            wait_for(client, 'errors_total{code="499"}', 1)


def test_a_request_whose_time_is_over_is_an_error_whole_or_streamed(
    shallow: Any, served: Any
) -> None:
    options = ServeOptions(allow_unvalidated=True, request_timeout_s=0.5)
    app = create_app(shallow.bundle, options=options, max_batch=2, max_seq_len=512)
    with served(app) as url, httpx.Client(base_url=url, timeout=LIMIT_S) as client:
        app.state.service.wait()
        whole = client.post("/v1/completions", json=LONG)
        lines = client.post("/v1/completions", json=LONG | {"stream": True}).text.split("\n\n")
        assert whole.status_code == 504
        assert whole.json()["error"]["code"] == "timeout"
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert not any("[DONE]" in line for line in lines)
        assert value(client, 'errors_total{code="504"}') == 2
        wait_for(client, "requests_running", 0)


def test_text_is_logged_where_that_was_asked_for(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nemo_trt.serve")
    asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    answer = client.post("/v1/chat/completions", json=asked | {"temperature": 0})
    plain = client.post("/v1/completions", json={"prompt": "One two three", "max_tokens": 4})
    chat, completion = logged(caplog, 2)
    assert "capital of France" in chat["prompt"]
    assert chat["answer"] == answer.json()["choices"][0]["message"]["content"]
    assert completion["prompt"] == ["One two three"]
    assert completion["answer"] == [plain.json()["choices"][0]["text"]]
