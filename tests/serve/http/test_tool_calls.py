"""Tools over HTTP, by the official client, on real Tekken: the tiny model is made to call."""

import json
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
        assert [call.index for call in calls] == [0]
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


def test_calls_cut_off_are_shown_as_the_text_that_they_are(tekken: Any) -> None:
    answer = tekken.client.chat.completions.create(
        **(ASK | {"max_tokens": 4}), tool_choice="required", temperature=0
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content.startswith("[")
    assert answer.choices[0].message.tool_calls is None


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


def test_an_id_that_mistral_does_not_know_is_refused(tekken: Any) -> None:
    call = {"id": "call_0123456789", "type": "function"}
    call |= {"function": {"name": "now", "arguments": "{}"}}
    turns = [
        *QUESTION,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "12:00"},
    ]
    with pytest.raises(openai.BadRequestError, match="Tool call id"):
        tekken.client.chat.completions.create(model="model", messages=turns)


def test_a_schema_that_cannot_be_enforced_names_tools(tekken: Any) -> None:
    wrong = {"name": "f", "parameters": {"type": "object", "not": {}}}
    with pytest.raises(openai.BadRequestError, match="enforced") as caught:
        tekken.client.chat.completions.create(
            model="model", messages=QUESTION, tools=[{"type": "function", "function": wrong}]
        )
    assert caught.value.param == "tools"
