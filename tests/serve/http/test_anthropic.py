"""Anthropic's Messages API: text, events, tools, schemas, errors and tokens."""

import json
from typing import Any

import httpx
import pytest

from nemo_trt.serve.http.anthropic_events import MessageWriter
from nemo_trt.serve.http.anthropic_input import chat_request
from nemo_trt.serve.http.anthropic_schema import MessagesRequest
from nemo_trt.serve.http.chat_run import CallPiece, Delta
from nemo_trt.serve.http.errors import ApiError

pytestmark = pytest.mark.model

ASK: dict[str, Any] = {
    "model": "model",
    "max_tokens": 6,
    "temperature": 0,
    "messages": [{"role": "user", "content": "Weather?"}],
}
WEATHER = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Bern"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALL: dict[str, Any] = ASK | {
    "max_tokens": 200,
    "tools": [WEATHER],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
}


def post(server: Any, body: dict[str, Any], path: str = "/v1/messages") -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=300)


def streamed(server: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
    events = []
    for block in post(server, body | {"stream": True}).text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def test_a_text_whole_and_streamed_is_that_of_the_chat_api(tekken: Any) -> None:
    chat = tekken.client.chat.completions.create(**ASK)
    whole = post(tekken, ASK).json()
    text = chat.choices[0].message.content
    assert whole["content"] == [{"type": "text", "text": text}]
    assert (whole["role"], whole["model"], whole["type"]) == ("assistant", "model", "message")
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("max_tokens", None)
    events = streamed(tekken, ASK)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert "".join(event["delta"]["text"] for event in events[2:-3]) == text
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}


def test_usage_tells_cached_tokens_apart(tekken: Any) -> None:
    body = ASK | {"messages": [{"role": "user", "content": "Count me. " * 40}]}
    count = {name: body[name] for name in ("model", "messages")}
    total = post(tekken, count, "/v1/messages/count_tokens").json()["input_tokens"]
    assert total > 80
    first, again = (post(tekken, body).json()["usage"] for _ in range(2))
    assert first["cache_read_input_tokens"] < 20 < total // 2 < again["cache_read_input_tokens"]
    for found in (first, again):
        assert found["input_tokens"] + found["cache_read_input_tokens"] == total
    assert first["output_tokens"] == 6
    assert streamed(tekken, body)[-2]["usage"] == again


def test_the_stop_sequence_that_ended_an_answer_is_named(tekken: Any) -> None:
    text = post(tekken, ASK).json()["content"][0]["text"]
    stop = text[len(text) // 2 :][:2]
    answer = post(tekken, ASK | {"stop_sequences": ["never", stop]}).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    assert "".join(block["text"] for block in answer["content"]) == text[: text.index(stop)]


def test_a_call_is_streamed_and_its_result_sent_back(tekken: Any) -> None:
    whole = post(tekken, CALL).json()
    (call,) = whole["content"]
    assert (call["type"], call["name"], whole["stop_reason"]) == ("tool_use", "weather", "tool_use")
    assert call["input"]["city"] in ("Rome", "Bern")
    events = streamed(tekken, CALL)
    assert events[1]["content_block"] | {"id": ""} == call | {"id": "", "input": {}}
    pieces = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
    assert len(pieces) > 1 and json.loads("".join(pieces)) == call["input"]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "21", "is_error": False}
    turns = [*ASK["messages"], whole, {"role": "user", "content": [result]}]
    turns[1] = {"role": "assistant", "content": whole["content"]}
    again = post(tekken, CALL | {"messages": turns, "tool_choice": {"type": "none"}})
    assert again.status_code == 200 and again.json()["usage"]["output_tokens"] > 0
    named = CALL | {"tool_choice": {"type": "tool", "name": "weather"}}
    assert post(tekken, named).json()["content"][0]["name"] == "weather"


def test_a_call_that_is_cut_off_comes_as_far_as_it_goes(tekken: Any) -> None:
    cut = post(tekken, CALL | {"max_tokens": 20}).json()
    assert cut["stop_reason"] == "max_tokens"
    (block,) = cut["content"]
    assert block["type"] == "tool_use" and isinstance(block["input"], dict)


def test_text_and_several_calls_are_blocks_of_their_own() -> None:
    def call(index: int, name: str | None, arguments: str) -> Delta:
        piece = CallPiece(index=index, id=name and f"id-{name}", name=name, arguments=arguments)
        return Delta(index=0, calls=[piece])

    writer = MessageWriter("m")
    news = [
        Delta(index=0, text="Let me "),
        Delta(index=0, text="see."),
        call(0, "f", ""),
        call(0, None, '{"x":'),
        call(0, None, "1}"),
        call(1, "g", "{}"),
        Delta(index=0, reason="tool_calls"),
    ]
    events = [event for delta in news for event in writer.push(delta)]
    assert writer.result["content"] == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "id-f", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "id-g", "name": "g", "input": {}},
    ]
    assert [(event["type"].removeprefix("content_block_"), event["index"]) for event in events] == [
        *(("start", 0), ("delta", 0), ("delta", 0), ("stop", 0)),
        *(("start", 1), ("delta", 1), ("delta", 1), ("stop", 1)),
        *(("start", 2), ("delta", 2), ("stop", 2)),
    ]


@pytest.mark.parametrize("value", ["1e999", "7" * 5000, '"\\ud800"'])
def test_arguments_that_json_cannot_carry_are_an_error_of_the_whole_answer_alone(
    value: str,
) -> None:
    writer = MessageWriter("m")
    piece = CallPiece(index=0, id="a", name="f", arguments=f'{{"x": {value}}}')
    events = list(writer.push(Delta(index=0, calls=[piece], reason="tool_calls")))
    assert events[1]["delta"]["partial_json"] == piece.arguments
    with pytest.raises(ApiError, match="The model called f with arguments that are no plain JSON"):
        _ = writer.result


def test_a_schema_is_enforced(tekken: Any) -> None:
    form = {"type": "json_schema", "schema": {"enum": ["Rome"]}}
    answer = post(tekken, ASK | {"output_config": {"format": form}}).json()
    assert answer["content"] == [{"type": "text", "text": '"Rome"'}]
    assert answer["stop_reason"] == "end_turn"


def test_turns_become_those_of_the_chat_api() -> None:
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "r"}]}
    body = MessagesRequest.model_validate(
        {
            "max_tokens": 9,
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "metadata": {"user_id": "me"},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "u"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "x"},
                        {"type": "text", "text": "t", "citations": None},
                        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "before"},
                        result,
                        {"type": "text", "text": "after"},
                    ],
                },
                {"role": "assistant", "content": []},
            ],
        }
    )
    chat = chat_request(body)
    assert chat.continues and chat.user == "me" and chat.token_limit == 9
    found = [message.model_dump(exclude_unset=True) for message in chat.messages]
    assert [(turn["role"], turn["content"]) for turn in found] == [
        ("system", [{"type": "text", "text": "s"}]),
        ("user", [{"type": "text", "text": "u"}]),
        ("assistant", [{"type": "text", "text": "t"}]),
        ("user", [{"type": "text", "text": "before"}]),
        ("tool", [{"type": "text", "text": "r"}]),
        ("user", [{"type": "text", "text": "after"}]),
        ("assistant", []),
    ]
    assert found[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":1}'}
    assert found[4]["tool_call_id"] == "a"


@pytest.mark.parametrize(
    ("extra", "begins"),
    [
        ({"max_tokens": None}, "max_tokens must be given."),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking must be disabled"),
        ({"mcp_servers": []}, "mcp_servers is not a field that this server knows"),
        ({"metadata": {"user_id": 1}}, "metadata.user_id must be a string, got 1."),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice must name one of the tools"),
        (
            {"tools": [{"name": "x", "strict": True, "input_schema": {"uniqueItems": True}}]},
            "tools[0].input_schema: ",
        ),
        ({"max_tokens": 10**6}, "This model's maximum context length is 512 tokens."),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].type must be one of 'text', 'tool_result', got 'image'.",
        ),
    ],
)
def test_what_cannot_be_honoured_is_an_error_in_anthropics_form(
    tekken: Any, extra: dict[str, Any], begins: str
) -> None:
    answer = post(tekken, ASK | extra)
    found = answer.json()
    assert answer.status_code == 400
    assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
    assert found["error"]["message"].startswith(begins), found


def test_other_errors_have_anthropics_form_too(tekken: Any) -> None:
    wrong_model = post(tekken, ASK | {"model": "other"})
    wrong_method = httpx.get(f"{tekken.url}/v1/messages")
    wrong_type = httpx.post(f"{tekken.url}/v1/messages", content=b"{}")
    found = [wrong_model, wrong_method, wrong_type]
    assert [(a.status_code, a.json()["error"]["type"]) for a in found] == [
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (415, "invalid_request_error"),
    ]


def test_a_stream_that_breaks_off_ends_with_an_error(
    tekken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo_trt.errors import DeadlineError
    from nemo_trt.serve.http.chat_run import ChatRun

    async def deltas(_: ChatRun) -> Any:
        raise DeadlineError("The time is over.")
        yield

    monkeypatch.setattr(ChatRun, "deltas", deltas)
    events = streamed(tekken, ASK)
    assert [event["type"] for event in events] == ["message_start", "error"]
    assert events[-1]["error"] == {"type": "timeout_error", "message": "The time is over."}
