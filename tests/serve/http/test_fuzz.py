"""Requests drawn from the served OpenAPI description, right and wrong: none is a fault of ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from nemo_trt.serve import ServeOptions, create_app
from tests.waiting import until

pytestmark = pytest.mark.model

PATHS = (
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses"),
    *("POST /v1/messages", "POST /v1/messages/count_tokens"),
    *("POST /tokenize", "POST /detokenize"),
)


@pytest.fixture(scope="module")
def server(tekken_bundle: Path, served: Any) -> Iterator[tuple[Any, str]]:
    """Answers have few tokens, whatever is asked for: the context is short."""
    options = ServeOptions(allow_unvalidated=True, request_timeout_s=600)
    app = create_app(tekken_bundle, options=options, max_batch=4, max_seq_len=48)
    with served(app) as url:
        app.state.service.wait()
        yield app, url


@pytest.fixture(scope="module")
def operations(server: tuple[Any, str]) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{server[1]}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", PATHS)
def test_no_request_is_a_server_error(
    operations: dict[str, Any], path: str, mode: GenerationMode
) -> None:
    statuses = set()

    @given(case=operations[path].as_strategy(generation_mode=mode))
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        answer = case.call(timeout=600)  # a busy machine is slow, not wrong
        status = answer.status_code
        statuses.add(status)
        assert status in (200, 400, 404, 405, 413, 415, 429), (status, answer.text)
        if status >= 400:
            error = answer.json()["error"]
            rest = set() if path.startswith("POST /v1/messages") else {"param", "code"}
            assert set(error) == {"message", "type"} | rest and error["message"]

    ask()
    assert statuses & {400, 404, 415} if mode is GenerationMode.NEGATIVE else statuses


@pytest.mark.parametrize("extra", [{}, {"echo": True}, {"prompt_logprobs": 1}])
@pytest.mark.parametrize("token", [-1, 131072, 2**70])
def test_a_prompt_of_unknown_tokens_is_refused(
    server: tuple[Any, str], token: int, extra: dict[str, Any]
) -> None:
    answer = httpx.post(f"{server[1]}/v1/completions", json={"prompt": [token], **extra})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "prompt" and "0 to 131071" in error["message"]


def test_no_slot_is_left_behind(server: tuple[Any, str]) -> None:
    service = server[0].state.service
    assert service.engine.failure is None
    # A client has its answer a moment before the slot is counted as free.
    until(lambda: b"nemo_trt_requests_running 0.0" in service.metrics.text())
    until(lambda: b"nemo_trt_requests_waiting 0.0" in service.metrics.text())


def test_every_route_describes_its_errors(server: tuple[Any, str]) -> None:
    for path in PATHS:
        operation = server[0].openapi()["paths"][path.removeprefix("POST ")]["post"]
        assert {"400", "401", "413", "415", "429", "503"} <= set(operation["responses"])
        assert operation["requestBody"]["required"]
