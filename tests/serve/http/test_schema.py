"""Every field of OpenAI's requests is honoured or refused by name: nothing is ignored."""

from typing import Any

import pytest
from openai.types import completion_create_params as plain
from openai.types.chat import completion_create_params as chat
from pydantic import ValidationError

from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.serve.http.refused import REFUSED
from nemo_trt.serve.http.schema import ChatRequest, CompletionRequest

pytestmark = pytest.mark.unit

USER = {"messages": [{"role": "user", "content": "x"}]}
# Field -> a value, and where it is seen: an attribute of SamplingParams and its value there. What
# acts elsewhere is tested where it acts, over HTTP.
SAMPLING: dict[str, tuple[Any, str, Any]] = {
    "frequency_penalty": (0.5, "frequency_penalty", 0.5),
    "presence_penalty": (-1, "presence_penalty", -1),
    "repetition_penalty": (1.2, "repetition_penalty", 1.2),
    "temperature": (0.3, "temperature", 0.3),
    "top_p": (0.9, "top_p", 0.9),
    "top_k": (40, "top_k", 40),
    "min_tokens": (2, "min_tokens", 2),
    "min_p": (0.05, "min_p", 0.05),
    "logit_bias": ({"7": -100, "8": 2.5}, "logit_bias", {7: -100, 8: 2.5}),
    "seed": (5, "seed", 5),
    "stop": (["a", "b"], "stop", ("a", "b")),
    "stop_token_ids": ([4], "stop_token_ids", (4,)),
    "ignore_eos": (True, "ignore_eos", True),
}
HONOURED_ELSEWHERE = {
    *("messages", "model", "n", "stream", "stream_options", "response_format", "speculate"),
    *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "prediction"),
    *("tools", "tool_choice", "parallel_tool_calls", "user", "safety_identifier"),
    *("prompt", "echo", "add_special_tokens", "prompt_logprobs"),
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("continue_final_message", "add_generation_prompt", "chat_template_kwargs"),
}
# Hints that change no token.
HINTS = {
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    *("guided_decoding_backend", "spaces_between_special_tokens"),
}
# Fields whose only accepted values say what is so anyway.
MOOT = {
    *(
        "modalities",
        "reasoning_effort",
        "service_tier",
        "store",
        "verbosity",
        "best_of",
        "metadata",
    ),
    *("priority", "skip_special_tokens", "use_beam_search"),
}


def openai_fields(module: Any) -> set[str]:
    base = module.CompletionCreateParamsBase
    return {*base.__annotations__, *module.CompletionCreateParamsStreaming.__annotations__}


@pytest.mark.parametrize(("module", "request_"), [(chat, ChatRequest), (plain, CompletionRequest)])
def test_openais_fields_are_known_one_by_one(module: Any, request_: Any) -> None:
    known = set(request_.model_fields)
    assert openai_fields(module) - known <= set(REFUSED)
    assert known <= {*SAMPLING, *HONOURED_ELSEWHERE, *HINTS, *MOOT}
    assert not known & set(REFUSED) - MOOT


@pytest.mark.parametrize("field", SAMPLING)
def test_sampling_fields_reach_the_sampler(field: str) -> None:
    given, attribute, expected = SAMPLING[field]
    for request in (
        ChatRequest.model_validate({**USER, field: given}),
        CompletionRequest.model_validate({"prompt": "x", field: given}),
    ):
        params = request.params(0, max_tokens=9, logprobs=None)
        assert getattr(params, attribute) == expected
        default = SamplingParams(max_tokens=9, temperature=1.0)
        others = [name for name in SamplingParams.__slots__ if name != attribute]
        assert all(getattr(params, name) == getattr(default, name) for name in others)


def test_a_seed_gives_each_answer_one_of_its_own() -> None:
    request = ChatRequest.model_validate({**USER, "seed": -1, "n": 2})
    seeds = [request.params(index, max_tokens=1, logprobs=None).seed for index in (0, 1)]
    assert seeds == [2**64 - 1, 0]


def test_null_is_absence() -> None:
    nulls = dict.fromkeys((*ChatRequest.model_fields, *REFUSED))
    assert ChatRequest.model_validate({**nulls, **USER}) == ChatRequest.model_validate(USER)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "1"},
        {"temperature": True},
        {"n": 0},
        {"n": 1.0},
        {"stream": 1},
        {"stop": [""]},
        {"stop": ["a"] * 17},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": 101}},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"max_tokens": 0},
        {"max_tokens": 1, "max_completion_tokens": 2},
        {"store": True},
        {"service_tier": "priority"},
        {"modalities": ["audio"]},
        {"tool_choice": "required"},
        {"top_k": -2},
        {"metadata": {"a": "b"}},
        {"skip_special_tokens": False},
        {"guided_regex": "a", "response_format": {"type": "text"}},
        {"guided_json": "no JSON"},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * 2},
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": "x"},
    ],
)
def test_what_cannot_be_honoured_is_no_request(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({**USER, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"best_of": 2},
        {"prompt_logprobs": 1, "stream": True},
        {"suffix": "x"},
        {"prompt": []},
        {"prompt": 3},
    ],
)
def test_nor_of_plain_completions(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"prompt": "x", **wrong})


@pytest.mark.parametrize(
    "left",
    [
        {"refusal": None, "annotations": [], "audio": None, "function_call": None},
        {"parsed": None, "provider_specific_fields": {"refusal": None}, "reasoning_content": "hm"},
        {"name": "anna"},
        {"tool_calls": []},
    ],
)
def test_what_clients_leave_inside_messages_is_dropped(left: dict[str, Any]) -> None:
    message = {"role": "assistant", "content": "x"}
    request = {"messages": [*USER["messages"], message | left, *USER["messages"]]}
    found = ChatRequest.model_validate(request).messages[1].model_dump(exclude_none=True)
    assert found == message | {"prefix": False} | (
        {"tool_calls": []} if "tool_calls" in left else {}
    )


@pytest.mark.parametrize(
    ("given", "field", "kind"),
    [
        ({"guided_json": {"type": "object"}}, "guided_json", "json_schema"),
        ({"guided_json": '{"type": "object"}'}, "guided_json", "json_schema"),
        ({"guided_choice": ["a", 'b"']}, "guided_choice", "grammar"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "regex"),
        (
            {"structured_outputs": {"json_object": True}},
            "structured_outputs.json_object",
            "json_object",
        ),
        ({"response_format": {"type": "text"}}, "response_format", "text"),
    ],
)
def test_the_format_has_several_names(given: dict[str, Any], field: str, kind: str) -> None:
    found = ChatRequest.model_validate({**USER, **given}).format
    assert found is not None and found[0] == field and found[1].type == kind


@pytest.mark.parametrize("stop", ["", [], None])
def test_an_empty_stop_stops_nothing(stop: Any) -> None:
    request = ChatRequest.model_validate({**USER, "stop": stop})
    assert request.params(0, max_tokens=1, logprobs=None).stop == ()
