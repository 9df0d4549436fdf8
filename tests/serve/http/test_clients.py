"""What client libraries send without being told to, replayed; what load balancers ask."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nemo_trt.errors import RequestError
from nemo_trt.serve import ServeOptions, create_app
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.model

PAGE = "https://chat.example"
USER = {"role": "user", "content": "Weather?"}
CALL = {"id": "call_9f3b2c7d", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_9f3b2c7d", "content": "21"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def turns(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, *messages], "max_tokens": 3}


def assistant(content: Any, **left: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **left}


WORKS = {
    "an empty answer": turns(assistant(""), USER),
    "text beside calls": turns(assistant("I look.", tool_calls=[CALL]), RESULT) | {"tools": TOOLS},
    "openai's stream helper": turns(
        assistant(None, parsed=None, refusal=None, tool_calls=[CALL | {"index": 0}]), RESULT
    ),
    "arguments as an object": turns(
        assistant(None, tool_calls=[CALL | {"function": {"name": "f", "arguments": {"a": 1}}}]),
        RESULT,
    ),
    "litellm": turns(
        assistant("Hm.", provider_specific_fields={"refusal": None}, function_call=None), USER
    ),
    "a late system message": turns(assistant("x"), {"role": "system", "content": "S"}, USER),
    "two user turns": turns(USER),
    "an assistant's turn last": turns(assistant("Sure, ")),
    "a prefix": turns(assistant("Sure, ", prefix=True)),
    "cache_control": turns(
        {
            "role": "user",
            "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        }
    ),
    "guidellm": turns()
    | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "aiperf": turns() | {"min_tokens": 3, "ignore_eos": True, "top_k": -1, "stop": ""},
    "vLLM's clients": turns()
    | {"guided_choice": ["yes", "no"], "skip_special_tokens": True, "chat_template_kwargs": {}},
    "empty metadata": turns() | {"metadata": {}, "prompt_cache_key": "x", "tool_choice": "auto"},
}


@pytest.fixture(scope="module")
def client(tekken_bundle: Path, served: Any) -> Iterator[httpx.Client]:
    options = ServeOptions(
        allow_unvalidated=True, model_name="org/model", api_keys=("k",), cors_origins=(PAGE,)
    )
    app = create_app(tekken_bundle, options=options, max_batch=2, max_seq_len=256)
    with served(app) as url:
        app.state.service.wait()
        headers = {"Authorization": "Bearer k"}
        with httpx.Client(base_url=url, timeout=LIMIT_S, headers=headers) as client:
            yield client


@pytest.mark.parametrize("name", WORKS)
def test_what_clients_send_is_answered(client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/chat/completions", json=WORKS[name])
    assert answer.status_code == 200, answer.text


def test_usage_so_far_is_on_every_chunk(client: httpx.Client) -> None:
    lines = client.post("/v1/chat/completions", json=WORKS["guidellm"]).text.splitlines()
    usages = [line for line in lines if '"usage":{"prompt_tokens"' in line]
    assert len(usages) == sum(line.startswith("data: {") for line in lines) > 2


def test_scores_of_an_echoed_prompt(client: httpx.Client) -> None:
    body = {"prompt": "Water boils", "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    lists = choice["logprobs"]
    assert choice["text"] == "Water boils" == "".join(lists["tokens"])
    assert choice["finish_reason"] == "length"
    assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
    tops = [max(top.values()) for top in lists["top_logprobs"][1:]]
    assert all(value <= top for value, top in zip(lists["token_logprobs"][1:], tops, strict=True))
    more = client.post("/v1/completions", json=body | {"max_tokens": 1}).json()["choices"][0]
    assert len(more["logprobs"]["tokens"]) == len(lists["tokens"]) + 1
    assert more["logprobs"]["token_logprobs"][1:-1] == pytest.approx(
        lists["token_logprobs"][1:], abs=1e-4
    )


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/health/live"])
def test_load_balancers_need_no_key(client: httpx.Client, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = client.request(method, path, headers={"Authorization": ""})
        assert answer.status_code == 200
        assert bool(answer.content) == (method == "GET")


def test_a_models_name_may_hold_a_slash(client: httpx.Client) -> None:
    assert client.get("/v1/models/org/model").json()["id"] == "org/model"
    assert client.get("/v1/models/org/other").status_code == 404


def test_pages_of_listed_origins_may_use_the_api(client: httpx.Client) -> None:
    for origin, allowed in ((PAGE, PAGE), ("https://other.example", None)):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Authorization": ""}
        answer = client.options("/v1/chat/completions", headers=asked)
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert (answer.status_code == 200) == (allowed is not None)


@pytest.mark.parametrize("origin", ["*", "chat.example", "https://chat.example/"])
def test_an_origin_is_scheme_and_host(origin: str) -> None:
    with pytest.raises(RequestError, match="origins such as"):
        ServeOptions(cors_origins=(origin,))
