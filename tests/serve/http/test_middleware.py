"""Keys, limits, ids and the log: what every request passes before a route sees it."""

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nemo_trt.errors import RequestError
from nemo_trt.serve import ServeOptions, create_app
from tests.waiting import LIMIT_S, until

pytestmark = pytest.mark.model

KEY = "a-very-secret-key"
ASK = {"prompt": "Tell me about Paris, please.", "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded(shallow: Any, served: Any) -> Iterator[httpx.Client]:
    options = ServeOptions(
        api_keys=(KEY, "second"), max_body_bytes=1000, allow_unvalidated=True, max_queue=1
    )
    app = create_app(shallow.bundle, options=options, max_batch=1, max_seq_len=512)
    with served(app) as url:
        app.state.service.wait()
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            yield client


def key(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


@pytest.mark.parametrize("given", [None, KEY[:-1], KEY + "x", "ä"])
def test_a_wrong_key_opens_nothing_of_the_api(guarded: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": f"Bearer {given}".encode("latin-1")}
    for path in ("/v1/models", "/v1/completions", "/tokenize", "/openapi.json", "/nowhere"):
        answer = guarded.post(path, json=ASK, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_refusal_has_the_form_of_the_api_that_was_asked(guarded: httpx.Client) -> None:
    refused = guarded.post("/v1/messages", json=ASK, headers={"X-Api-Key": KEY + "x"})
    assert refused.status_code == 401
    found = refused.json()
    assert (found["type"], found["error"]["type"]) == ("error", "authentication_error")
    large = guarded.post("/v1/messages", content=b"x" * 1001, headers=key(KEY))
    assert large.json()["error"]["type"] == "request_too_large"


def test_each_key_opens_it(guarded: httpx.Client) -> None:
    for one in (KEY, "second"):
        for headers in (key(one), {"X-Api-Key": one}):
            assert guarded.post("/v1/completions", json=ASK, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/metrics"])
def test_page_health_and_metrics_need_none(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_a_large_body_is_refused_whether_it_says_so_or_not(guarded: httpx.Client) -> None:
    text = json.dumps({"prompt": "x" * 2000}).encode()
    honest = guarded.post("/v1/completions", content=text, headers=key(KEY))
    pieces = (text[i : i + 100] for i in range(0, len(text), 100))  # sent without a length
    headers = {**key(KEY), "Content-Type": "application/json"}
    silent = guarded.post("/v1/completions", content=pieces, headers=headers)
    for answer in (honest, silent):
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_again(guarded: httpx.Client) -> None:
    long = ASK | {"max_tokens": 400, "ignore_eos": True, "stream": True, "n": 3}
    with contextlib.ExitStack() as running:  # one slot, one place in the queue
        for _ in range(2):
            answer = running.enter_context(
                guarded.stream("POST", "/v1/completions", json=long, headers=key(KEY))
            )
            assert answer.status_code == 200
        answer = guarded.post("/v1/completions", json=ASK, headers=key(KEY))
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error"

    def taken() -> bool:
        return guarded.post("/v1/completions", json=ASK, headers=key(KEY)).status_code == 200

    until(taken)  # who left gave the places back
    assert 'nemo_trt_errors_total{code="429"}' in guarded.get("/metrics").text
    until(lambda: 'nemo_trt_errors_total{code="499"} 2.0' in guarded.get("/metrics").text)


def test_every_answer_bears_an_id(guarded: httpx.Client) -> None:
    mine = guarded.get("/health/live", headers={"X-Request-Id": "trace-1.a"})
    assert mine.headers["x-request-id"] == "trace-1.a"
    first = guarded.get("/health/live", headers={"X-Request-Id": "no spaces or ünicode".encode()})
    second = guarded.get("/v1/models")
    ids = {first.headers["x-request-id"], second.headers["x-request-id"]}
    assert len(ids) == 2 and all(len(one) == 32 for one in ids)


def test_the_log_has_a_line_a_request_without_text_or_key(
    guarded: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nemo_trt.serve")
    headers = key(KEY) | {"X-Request-Id": "logged"}
    answer = guarded.post("/v1/completions", json=ASK | {"user": "u-7"}, headers=headers)
    assert answer.status_code == 200
    lines = [json.loads(r.message) for r in caplog.records if r.name == "nemo_trt.serve"]
    line = next(line for line in lines if line["request_id"] == "logged")
    assert line["status"] == 200 and line["path"] == "/v1/completions" and line["user"] == "u-7"
    assert line["completion_tokens"] == 2 and line["seconds"] > 0
    assert "Paris" not in caplog.text and KEY not in caplog.text


def test_the_log_says_why_a_request_was_refused(
    guarded: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nemo_trt.serve")
    guarded.post("/v1/completions", json=ASK)
    guarded.post("/v1/completions", json={"prompt": "x" * 2000}, headers=key(KEY))
    pieces = (b"x" * 400 for _ in range(5))
    typed = key(KEY) | {"Content-Type": "application/json"}
    guarded.post("/v1/completions", content=pieces, headers=typed)
    lines = [json.loads(r.message) for r in caplog.records if r.name == "nemo_trt.serve"]
    found = [(line["status"], line["code"]) for line in lines]
    assert found == [(401, "invalid_api_key")] + [(413, "body_too_large")] * 2


def test_an_error_in_the_program_is_a_500_in_openais_form(
    shallow: Any, served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(shallow.bundle, options=ServeOptions(allow_unvalidated=True))

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("a secret of the inside")

    with served(app) as url:
        answer = httpx.get(f"{url}/broken")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "a secret of the inside" in caplog.text


def test_options_show_no_key() -> None:
    assert KEY not in repr(ServeOptions(api_keys=(KEY,)))
    with pytest.raises(RequestError, match="API key"):
        ServeOptions(api_keys=("",))
    with pytest.raises(RequestError, match="max_queue"):
        ServeOptions(max_queue=0)
