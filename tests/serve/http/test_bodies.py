"""Bodies of every kind: read within bounds, no flood of errors, refused in words."""

import asyncio
import json
import threading
import tracemalloc
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ValidationError
from starlette.testclient import TestClient

from nemo_trt.serve.http import errors
from nemo_trt.serve.http.anthropic_schema import MessagesRequest
from nemo_trt.serve.http.bodies import _SMALL, JsonRoute, _validated, read
from nemo_trt.serve.http.json_bounds import MAX_NAMED, MAX_VALUES
from nemo_trt.serve.http.responses_schema import ResponsesRequest
from nemo_trt.serve.http.schema import ChatRequest, CompletionRequest, DetokenizeRequest
from nemo_trt.serve.http.validation import explain
from nemo_trt.serve.workers import Workers
from nemo_trt.utf8 import undecodable

pytestmark = pytest.mark.unit

USER = {"role": "user", "content": "x"}


VALIDATED_IN: list[str] = []


def note_thread(value: str) -> str:
    VALIDATED_IN.append(threading.current_thread().name)
    return value


class Echo(BaseModel):
    """A body."""

    text: Annotated[str, AfterValidator(note_thread)]


@pytest.fixture(scope="module")
def client() -> Any:
    app = FastAPI()
    router = APIRouter(route_class=JsonRoute)

    @router.post("/echo")
    async def echo(body: Echo) -> dict[str, Any]:
        return {"size": len(body.text)}

    app.include_router(router)
    errors.install(app)
    parsers = Workers("parse", threads=1, max_waiting=4)
    app.state.service = SimpleNamespace(parsers=parsers)
    with TestClient(app) as client:
        yield client
    parsers.close()


def refused(client: TestClient, content: Any, kind: str | None = "application/json") -> Any:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post("/echo", content=content, headers=headers)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"]
)
def test_a_body_arrives(client: TestClient, size: int, kind: str) -> None:
    content = json.dumps({"text": "é" * size}).encode()
    answer = client.post("/echo", content=content, headers={"Content-Type": kind})
    assert answer.json() == {"size": size}


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "x"])
def test_another_content_type_is_refused_before_it_is_read(
    client: TestClient, kind: str | None
) -> None:
    status, error = refused(client, b'{"text": "x"}', kind)
    assert status == 415
    assert error["message"].startswith("The Content-Type of the body must be application/json, got")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The body must be JSON"),
        (b"{", "The body must be JSON"),
        (b'{"text": "\xff"}', "The body must be JSON in UTF-8"),
        (b'{"text": ' + b"9" * 5000 + b"}", "The body must be JSON"),
        (b'{"text": "\xed\xa0\xbd"}', "The body must be JSON in UTF-8"),
        (b'{"text": "cut \\ud83d"}', "text must be text that UTF-8 can hold"),
        ('{"text": "é"}'.encode("utf-16"), "The body must be JSON in UTF-8"),
        (b"[]", "The body must be an object, got []."),
        (b"{}", "text must be given."),
        (b"[" + b"{}," * MAX_NAMED, "The body must hold at most 16384 objects"),
        (b"[" * 200, "The body must be nested at most 100 deep."),
        (b'{"text": "' + b"a" * 100_000, "The body must be JSON"),
        (b'{"text": ["' + b"a" * 100_000 + b'"]}', "text must be a string, got ["),
    ],
)
def test_what_is_wrong_is_said_shortly(client: TestClient, content: bytes, words: str) -> None:
    status, error = refused(client, content)
    assert status == 400 and error["type"] == "invalid_request_error"
    assert error["message"].startswith(words)
    assert len(error["message"]) < 400


HALF = "\\ud83d"
CHAT = '{"messages": [{"role": "user", "content": "x"}], FIELD}'
FORMAT = CHAT.replace("FIELD", '"response_format": FORMAT')
HALVES = {
    "messages[0].content": (ChatRequest, '{"messages": [{"role": "user", "content": "HALF"}]}'),
    "messages[0].content[0].text": (
        ChatRequest,
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "HALF"}]}]}',
    ),
    "stop[1]": (ChatRequest, CHAT.replace("FIELD", '"stop": ["a", "HALF"]')),
    "chat_template_kwargs.a[0]": (
        ChatRequest,
        CHAT.replace("FIELD", '"chat_template_kwargs": {"a": ["HALF"]}'),
    ),
    "tools[0].function.parameters": (
        ChatRequest,
        CHAT.replace("FIELD", '"tools": [{"function": {"parameters": {"HALF": 1}}}]'),
    ),
    "user": (ChatRequest, CHAT.replace("FIELD", '"user": "HALF"')),
    "response_format.regex": (
        ChatRequest,
        FORMAT.replace("FORMAT", '{"type": "regex", "regex": "HALF"}'),
    ),
    "response_format.grammar": (
        ChatRequest,
        FORMAT.replace("FORMAT", '{"type": "grammar", "grammar": "HALF"}'),
    ),
    "response_format.json_schema.schema.enum[0]": (
        ChatRequest,
        FORMAT.replace(
            "FORMAT", '{"type": "json_schema", "json_schema": {"schema": {"enum": ["HALF"]}}}'
        ),
    ),
    "guided_choice[0]": (ChatRequest, CHAT.replace("FIELD", '"guided_choice": ["HALF"]')),
    "prompt": (CompletionRequest, '{"prompt": "HALF"}'),
    "prompt[0]": (CompletionRequest, '{"prompt": ["HALF"]}'),
    "input": (ResponsesRequest, '{"input": "HALF"}'),
    "text.format.schema": (
        ResponsesRequest,
        '{"input": "x", "text": {"format": {"type": "json_schema", "schema": {"HALF": 1}}}}',
    ),
}


@pytest.mark.parametrize("path", HALVES)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(path: str) -> None:
    model, body = HALVES[path]
    with pytest.raises(errors.ApiError) as raised:
        _validated(bytearray(body.replace("HALF", HALF).encode()), model)
    assert raised.value.status == 400
    error = raised.value.body["error"]
    assert error["param"] == path and error["message"].startswith(f"{path} must be text that UTF-8")


@pytest.mark.parametrize("number", ["1e999", "-1E+400", "1e0309", "9" * 310 + ".5"])
def test_a_number_beyond_all_bounds_is_refused_wherever_it_stands(number: str) -> None:
    spaces = " " * (_SMALL - len('{"input": "x", "tools": ') - 2)  # it begins in one block
    for value in (
        spaces + number,
        f"[1, {number}]",
        f'{{"a": [{{}}, [], [2.5, {{"b": {number}}}]]}}',
    ):
        body = f'{{"input": "x", "tools": {value}}}'
        with pytest.raises(errors.ApiError, match=r"^tools must hold finite numbers") as raised:
            _validated(bytearray(body.encode()), ResponsesRequest)
        assert (raised.value.status, raised.value.body["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize("number", ["1e300", "-1e-999", "1" * 400])
def test_other_large_numbers_are_numbers(number: str) -> None:
    body = f'{{"input": "x", "prompt_cache_options": {{"a": {number}}}}}'
    assert _validated(bytearray(body.encode()), ResponsesRequest)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    body = bytearray(rb'{"prompt": "\ud83d\ude42"}')
    assert _validated(body, CompletionRequest).prompt == "🙂"  # type: ignore[attr-defined]


def test_a_large_body_is_validated_off_the_event_loop(client: TestClient) -> None:
    for size in (10, 100_000):
        client.post("/echo", json={"text": "a" * size})
        assert ("nemo-trt parse" in VALIDATED_IN[-1]) == (size > 10)


MANY = MAX_NAMED // 2
FLOODS: list[tuple[Any, dict[str, Any]]] = [
    (ChatRequest, {"messages": [{}] * MANY}),
    (ChatRequest, {"messages": [{"role": "user"}] * MANY}),
    (ChatRequest, {"messages": [{**USER, "content": [{"type": "text"}] * MANY}]}),
    (ChatRequest, {"messages": [USER], **{f"field{at}": 1 for at in range(MANY)}}),
    (ChatRequest, {"messages": [USER], "tools": [{}] * MANY}),
    (ChatRequest, {"messages": [USER], "logit_bias": {f"x{at}": 1 for at in range(MANY)}}),
    (ChatRequest, {"messages": [USER], "metadata": {f"x{at}": "1" for at in range(MANY)}}),
    (ChatRequest, {"messages": [USER], "guided_choice": [1] * MAX_VALUES}),
    (ChatRequest, {"messages": [USER], "stop": [1] * MAX_VALUES}),
    (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [{}] * MANY}]}),
    (CompletionRequest, {"prompt": ["x"] * MAX_VALUES}),
    (CompletionRequest, {"prompt": [None] * MAX_VALUES}),
    (CompletionRequest, {"prompt": [["x"]] * MANY}),
    (CompletionRequest, {"prompt": "x", "stop_token_ids": ["x"] * MAX_VALUES}),
    (DetokenizeRequest, {"tokens": ["x"] * MAX_VALUES}),
    (ResponsesRequest, {"input": [{}] * MANY}),
    (ResponsesRequest, {"input": [{**USER, "content": [{"type": "x"}] * MANY}]}),
    (ResponsesRequest, {"input": "x", "include": ["x"] * MAX_VALUES}),
    (ResponsesRequest, {"input": "x", "metadata": {f"x{at}": 1 for at in range(MANY)}}),
    (ResponsesRequest, {"input": "x", "tools": [{}] * MANY}),
    (MessagesRequest, {"messages": [{}] * MANY}),
    (MessagesRequest, {"messages": [{**USER, "content": [{"type": "x"}] * MANY}]}),
    (MessagesRequest, {"messages": [USER], "stop_sequences": [1] * MAX_VALUES}),
    (MessagesRequest, {"messages": [USER], "tools": [{}] * MANY}),
]


@pytest.mark.parametrize(("model", "body"), FLOODS)
def test_a_flood_of_faults_is_a_few_errors(model: Any, body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() <= 8
    message, _ = explain([{**e, "loc": ("body", *e["loc"])} for e in caught.value.errors()], body)
    assert len(message) < 300


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        (CompletionRequest, {"prompt": ["x"] * 40}, "prompt must have at most 32 entries"),
        (CompletionRequest, {"prompt": "x", "stop": ["a"] * 17}, "stop must have at most 16"),
        *(
            (
                model,
                asked | {"tools": [{"type": "web_search"}]},
                f"tools must be of type '{kind}' alone, got 'web_search'.",
            )
            for model, asked, kind in (
                (ChatRequest, {"messages": [USER]}, "function"),
                (ResponsesRequest, {"input": "x"}, "function"),
                (MessagesRequest, {"messages": [USER], "max_tokens": 1}, "custom"),
            )
        ),
        (ChatRequest, {"messages": [{**USER, "content": [{"type": "text"}]}]}, "messages[0]."),
        (
            ChatRequest,
            {"messages": [{**USER, "content": 5}], "n": 0},
            "n must be at least 1, got 0.",
        ),
        (
            ChatRequest,
            {"messages": [USER], "tool_choice": "some"},
            "tool_choice must be 'none', 'auto' or 'required'",
        ),
        (
            ChatRequest,
            {"messages": [USER], "tool_choice": {"type": "function"}},
            "tool_choice.function must be given.",
        ),
    ],
)
def test_of_a_field_of_several_kinds_the_sentence_is_of_the_right_one(
    model: Any, body: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    message, _ = explain([{**e, "loc": ("body", *e["loc"])} for e in caught.value.errors()], body)
    assert message.startswith(sentence)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [], "%s": 1}',
        b'{"messages": [{"role": "user", "content": "x", "%s": 1}], "n": 99}',
        b'{"messages": "%s"}',
        b'{"messages": [{"role": "%s"}]}',
        b'{"messages": [], "%s": "\\ud800"}',
        b'{"messages": [], "response_format": {"type": "%s"}}',
    ],
)
def test_an_error_is_short_whatever_the_client_calls_its_fields(body: bytes) -> None:
    with pytest.raises((RequestValidationError, errors.ApiError)) as raised:
        _validated(bytearray(body % (b"x" * 10**6)), ChatRequest)
    error = raised.value
    if isinstance(error, RequestValidationError):
        message, param = explain(error.errors(), error.body)
        error = errors.ApiError(400, message, param=param)
    assert len(json.dumps(error.body)) < 5000


def test_a_body_that_holds_too_much_is_read_to_its_end_before_it_is_refused() -> None:
    """Else a client that still sends finds the connection reset, and no answer."""
    pieces = [b"[" + b"{}," * MAX_NAMED, b"x" * 1000, b"x" * 1000, b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    scope = {"type": "http", "method": "POST", "headers": []}
    with pytest.raises(errors.ApiError, match="must hold at most"):
        asyncio.run(read(Request(scope, receive)))
    assert not pieces


def test_looking_for_half_a_surrogate_pair_takes_less_memory_than_what_is_searched() -> None:
    tokens = [[5] * 200_000, {"a": [1.5] * 100_000}]
    tracemalloc.start()
    try:
        assert undecodable(tokens) is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
