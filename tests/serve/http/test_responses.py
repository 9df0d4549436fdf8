"""The Responses API, by the official client: text, events, tools, schemas; nothing is stored."""

import json
from typing import Any

import numpy as np
import openai
import pytest
from openai.types.responses import ResponseErrorEvent, ResponseFailedEvent

pytestmark = pytest.mark.model

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Bern"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASK: dict[str, Any] = {"model": "model", "input": "Weather?", "temperature": 0}
CALL: dict[str, Any] = ASK | {
    "tools": [WEATHER],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_output_tokens": 200,
}


def test_a_text_whole_and_streamed_is_that_of_the_chat_api(tekken: Any) -> None:
    chat = tekken.client.chat.completions.create(
        model="model",
        messages=[{"role": "user", "content": "Weather?"}],
        max_tokens=6,
        temperature=0,
    )
    whole = tekken.client.responses.create(**ASK, max_output_tokens=6)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 6
    events = list(tekken.client.responses.create(**ASK, max_output_tokens=6, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text


def test_a_call_is_streamed_and_its_result_sent_back(tekken: Any) -> None:
    with tekken.client.responses.stream(**CALL) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    (call,) = response.output
    assert call.name == "weather" and json.loads(call.arguments)["city"] in ("Rome", "Bern")
    assert kinds.count("response.function_call_arguments.delta") > 1
    assert kinds[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
    turns = [{"role": "user", "content": "Weather?"}, call.model_dump(), result]
    again = tekken.client.responses.create(**(CALL | {"input": turns, "tool_choice": "none"}))
    assert again.output[0].type == "message" and again.usage.input_tokens > 20


def test_text_that_follows_a_schema(tekken: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    found = tekken.client.responses.create(**ASK, text=form, max_output_tokens=200)
    assert json.loads(found.output_text)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"max_output_tokens": 9999}, "max_output_tokens"),
        ({"input": "x " * 700}, "input"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_what_cannot_be_honoured_names_the_clients_own_field(
    tekken: Any, wrong: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        tekken.client.responses.create(**{**ASK, "extra_body": wrong, "max_output_tokens": 4})
    assert caught.value.param == param


def test_an_answer_that_breaks_off_ends_with_error_and_failed_events(
    tekken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = type(tekken.app.state.service.engine.session)
    working, steps = session._step, iter((False, False))

    def fails_later(self: Any, *arguments: Any) -> Any:
        logits = working(self, *arguments)
        if next(steps, True):
            logits[:] = np.nan
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(session, "_step", fails_later)
        stream = tekken.client.responses.create(**ASK, max_output_tokens=9, stream=True)
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    error, failed = events[-2:]
    assert isinstance(error, ResponseErrorEvent) and isinstance(failed, ResponseFailedEvent)
    assert error.code == "engine_error" and "must be finite" in error.message
    response = failed.response
    assert response.status == "failed" and response.error is not None
    assert (response.error.code, response.error.message) == ("server_error", error.message)
    assert response.output[0].status == "incomplete"
    assert tekken.client.responses.create(**ASK, max_output_tokens=2).status == "incomplete"
