"""Tools over HTTP, by the official client, on real Tekken: the tiny model is made to call."""

import json
import re
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.model

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "w", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
CALLS = {"9": 100}  # [TOOL_CALLS] becomes the likeliest token
ASK: dict[str, Any] = {"model": "model", "messages": QUESTION, "tools": TOOLS, "max_tokens": 200}


def valid(call: Any) -> None:
    assert len(call.id) == 9 and call.id.isalnum() and call.type == "function"
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert set(arguments) == {"city", "days"} and arguments["days"] in (1, 2, 3)
    else:
        assert call.function.name == "now" and not arguments


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stream", [False, True])
def test_a_chosen_function_is_called_with_arguments_that_fit(
    tekken: Any, seed: int, stream: bool
) -> None:
    answer = tekken.client.chat.completions.create(
        **ASK,
        seed=seed,
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        stream=stream,
    )
    if stream:
        chunks = list(answer)
        calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        reason = chunks[-1].choices[0].finish_reason
        assert len(calls) > 2 and {call.index for call in calls} == {0}
        whole, *pieces = calls
        for piece in pieces:
            assert piece.id is None
            whole.function.arguments += piece.function.arguments
        calls = [whole]
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
    else:
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert reason == "tool_calls" and len(calls) == 1
    assert calls[0].function.name == "weather"
    valid(calls[0])


def test_a_required_call_calls_one_of_the_functions(tekken: Any) -> None:
    names = set()
    for seed in range(4):
        answer = tekken.client.chat.completions.create(
            **ASK, tool_choice="required", seed=seed, parallel_tool_calls=False
        )
        (call,) = answer.choices[0].message.tool_calls
        valid(call)
        names.add(call.function.name)
    assert names == {"weather", "now"}


def test_a_model_that_calls_by_itself_is_understood(tekken: Any) -> None:
    answer = tekken.client.chat.completions.create(
        **ASK, logit_bias=CALLS, seed=1, parallel_tool_calls=False
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    valid(answer.choices[0].message.tool_calls[0])


def test_without_tools_or_with_none_wanted_there_are_no_calls(tekken: Any) -> None:
    plain = tekken.client.chat.completions.create(
        model="model", messages=QUESTION, max_tokens=5, temperature=0
    )
    none = tekken.client.chat.completions.create(
        **(ASK | {"max_tokens": 5}), tool_choice="none", temperature=0
    )
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens  # tools are not shown
    shown = tekken.client.chat.completions.create(**(ASK | {"max_tokens": 1}))
    assert shown.usage.prompt_tokens > plain.usage.prompt_tokens + 30


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_is_a_call_as_far_as_it_goes(tekken: Any, stream: bool) -> None:
    answer = tekken.client.chat.completions.create(
        **(ASK | {"max_tokens": 30}),
        tool_choice={"type": "function", "function": {"name": "weather"}},
        temperature=0,
        stream=stream,
    )
    if stream:
        chunks = list(answer)
        calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        content = [chunk.choices[0].delta.content for chunk in chunks]
        reason = chunks[-1].choices[0].finish_reason
        assert not any(content)
    else:
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert reason == "length" and calls[0].function.name == "weather"
    arguments = "".join(call.function.arguments for call in calls)
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)


def test_a_conversation_goes_on_with_the_tools_answer(tekken: Any) -> None:
    call = {"name": "weather", "arguments": '{"city": "Paris", "days": 1}'}
    turns = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "abcdefghi", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "21 degrees, sun"},
    ]
    found = tekken.client.post(
        "../tokenize", body={"model": "model", "messages": turns}, cast_to=object
    )
    prompt = tekken.client.post("../detokenize", body={"tokens": found["tokens"]}, cast_to=object)[
        "prompt"
    ]
    assert '"name": "weather"' in prompt and "21 degrees, sun" in prompt and "abcdefghi" in prompt
    answer = tekken.client.chat.completions.create(
        model="model", messages=turns, tools=TOOLS, max_tokens=2
    )
    assert answer.usage.completion_tokens == 2


@pytest.mark.parametrize("name", ["call_0123456789", "toolu_01A09q90", "1", "", "é"])
def test_any_id_is_one_that_mistral_knows_the_same_for_call_and_result(
    tekken: Any, name: str
) -> None:
    call = {"id": name, "type": "function", "function": {"name": "now", "arguments": "{}"}}
    turns = [
        *QUESTION,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": name, "content": "12:00"},
    ]
    body = {"model": "model", "messages": turns}
    found = tekken.client.post("../tokenize", body=body, cast_to=object)
    again = tekken.client.post("../tokenize", body=body, cast_to=object)
    assert found == again  # the prefix in the cache stays the same
    text = tekken.client.post("../detokenize", body={"tokens": found["tokens"]}, cast_to=object)[
        "prompt"
    ]
    (called,) = re.findall(r'"id": "([a-zA-Z0-9]{9})"', text)
    (answered,) = re.findall(r'"call_id": "([a-zA-Z0-9]{9})"', text)
    assert called == answered
    answer = tekken.client.chat.completions.create(model="model", messages=turns, max_tokens=2)
    assert answer.usage.completion_tokens == 2


UNIQUE = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"enum": ["a"]}, "uniqueItems": True}},
    "required": ["tags"],
    "additionalProperties": False,
}


def test_a_strict_schema_that_cannot_be_enforced_is_named(tekken: Any) -> None:
    wrong = {"name": "tag", "parameters": UNIQUE, "strict": True}
    tools = [*TOOLS, {"type": "function", "function": wrong}]
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        tekken.client.chat.completions.create(**(ASK | {"tools": tools}))
    assert caught.value.param == "tools[2].function.parameters"


def test_of_a_schema_that_is_not_strict_the_rest_is_enforced_and_said(tekken: Any) -> None:
    loose = {"type": "function", "function": {"name": "tag", "parameters": UNIQUE}}
    answer = tekken.client.chat.completions.with_raw_response.create(
        **(ASK | {"tools": [*TOOLS, loose]}),
        tool_choice={"type": "function", "function": {"name": "tag"}},
        logit_bias={"1093": 5},  # "]", so that lists end
        seed=2,
    )
    assert answer.headers["x-relaxed-schemas"] == "tools[2].function.parameters"
    choice = answer.parse().choices[0]
    assert choice.message.tool_calls[0].function.arguments.lstrip("{ \n").startswith('"tags"')
