"""The official client drives the whole surface, and what it gets is what the Runner answers."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams

pytestmark = pytest.mark.model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
TOO_LONG = [{"role": "user", "content": "x " * 700}]
WRONG_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}
GREEDY: dict[str, Any] = {"model": "model", "temperature": 0}


@pytest.fixture(scope="module")
def runner(sample_bundle: Any) -> Iterator[Runner]:
    with Runner.open(sample_bundle.bundle, max_seq_len=512) as runner:
        yield runner


def text(runner: Runner, messages: Any, **params: Any) -> str:
    events = runner.chat(messages, SamplingParams(**params))
    return "".join(event.text for event in events)


def test_a_conversation_whole_and_streamed_is_the_runners(sample: Any, runner: Runner) -> None:
    expected = text(runner, QUESTION, max_tokens=40)
    whole = sample.client.chat.completions.create(**GREEDY, messages=QUESTION, max_tokens=40)
    choice = whole.choices[0]
    assert choice.message.content == expected
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert whole.model == "model" and whole.id.startswith("chatcmpl-")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    stream = sample.client.chat.completions.create(
        **GREEDY,
        messages=QUESTION,
        max_completion_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert len(chunks) > 4
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_without_being_asked_a_stream_tells_no_usage(sample: Any) -> None:
    stream = sample.client.chat.completions.create(
        **GREEDY, messages=QUESTION, max_tokens=2, stream=True
    )
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


def test_logprobs_are_the_samplers(sample: Any, runner: Runner) -> None:
    expected = list(runner.chat(QUESTION, SamplingParams(max_tokens=4, logprobs=3)))
    found = sample.client.chat.completions.create(
        **GREEDY, messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=3
    )
    entries = found.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == found.choices[0].message.content
    for entry, event in zip(entries, expected, strict=True):
        assert entry.logprob == pytest.approx(event.logprob, abs=1e-3)
        assert bytes(entry.bytes).decode() == entry.token
        values = [value for _, value in event.top_logprobs]
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(values, abs=1e-3)


def test_a_streams_logprobs_come_with_their_tokens(sample: Any) -> None:
    stream = sample.client.chat.completions.create(
        **GREEDY, messages=QUESTION, max_tokens=4, logprobs=True, stream=True
    )
    entries = [c.choices[0].logprobs.content for c in stream if c.choices[0].logprobs]
    assert [len(found) for found in entries] == [1, 1, 1, 1]


def test_several_answers_differ_and_a_seed_repeats_them(sample: Any) -> None:
    def ask(stream: bool) -> dict[int, str]:
        answer = sample.client.chat.completions.create(
            model="model",
            messages=[{"role": "user", "content": "Invent a name."}],
            n=4,  # more than slots
            seed=7,
            temperature=1.2,
            extra_body={"top_k": 20},  # among rare tokens, rounding may decide
            max_tokens=8,
            stream=stream,
        )
        if not stream:
            return {c.index: c.message.content for c in answer.choices}
        found = dict.fromkeys(range(4), "")
        for chunk in answer:
            found[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        return found

    first = ask(False)
    assert len(set(first.values())) > 1
    assert ask(False) == first == ask(True)


def test_plain_completions(sample: Any, runner: Runner) -> None:
    prompts = ["The capital of France is", "Water boils at"]
    params = SamplingParams(max_tokens=6)
    expected = ["".join(e.text for e in runner.generate(prompt, params)) for prompt in prompts]
    found = sample.client.completions.create(**GREEDY, prompt=prompts, max_tokens=6, echo=True)
    assert [choice.text for choice in found.choices] == [
        prompt + answer for prompt, answer in zip(prompts, expected, strict=True)
    ]
    assert [choice.index for choice in found.choices] == [0, 1]
    ids = runner.tokenizer.encode(prompts[0], bos=True)
    assert found.usage.prompt_tokens > len(ids)  # of both
    by_ids = sample.client.completions.create(**GREEDY, prompt=ids, max_tokens=6, logprobs=2)
    assert by_ids.choices[0].text == expected[0]
    logprobs = by_ids.choices[0].logprobs
    assert "".join(logprobs.tokens) == expected[0]
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    stream = sample.client.completions.create(
        **GREEDY, prompt=prompts[0], max_tokens=6, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == expected[0]


def test_stop_strings_are_not_shown(sample: Any) -> None:
    found = sample.client.chat.completions.create(**GREEDY, messages=QUESTION, stop=["Fran"])
    assert found.choices[0].message.content == "The capital of "
    assert found.choices[0].finish_reason == "stop"


def test_json_that_follows_a_schema(sample: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    found = sample.client.chat.completions.create(
        model="model",
        temperature=2.0,  # the grammar holds it, not the model
        seed=1,
        messages=[{"role": "user", "content": "Make up a person."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": schema, "strict": True},
        },
        max_tokens=200,
    )
    person = json.loads(found.choices[0].message.content)
    assert set(person) == {"name", "age"} and isinstance(person["age"], int)


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({"type": "regex", "regex": "[0-9]{3}-[0-9]{4}"}, lambda t: len(t) == 8 and t[3] == "-"),
        ({"type": "grammar", "grammar": 'start: "yes" | "no"'}, lambda t: t in ("yes", "no")),
        ({"type": "text"}, bool),
    ],
)
def test_other_formats(sample: Any, wanted: Any, holds: Any) -> None:
    found = sample.client.chat.completions.create(
        model="model", messages=QUESTION, max_tokens=20, extra_body={"response_format": wanted}
    )
    assert holds(found.choices[0].message.content)


def test_a_prediction_is_drafted_from(sample: Any) -> None:
    passage = "The capital of France is Paris. " * 3
    found = sample.client.chat.completions.create(
        **GREEDY,
        messages=QUESTION,
        max_tokens=24,
        prediction={"type": "content", "content": passage},
        logit_bias={},
    )
    details = found.usage.completion_tokens_details
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens > 0
    plain = sample.client.chat.completions.create(**GREEDY, messages=QUESTION, max_tokens=24)
    assert found.choices[0].message.content == plain.choices[0].message.content


def test_the_prompt_that_several_answers_share_counts_once(sample: Any) -> None:
    asked = {"messages": QUESTION, "max_tokens": 3, "extra_body": {"ignore_eos": True}}
    one = sample.client.chat.completions.create(model="model", **asked)
    three = sample.client.chat.completions.create(model="model", n=3, **asked)
    assert len(three.choices) == 3 and three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens == 9


def test_extensions_reach_the_sampler(sample: Any) -> None:
    found = sample.client.chat.completions.create(
        **GREEDY, messages=QUESTION, max_tokens=30, extra_body={"ignore_eos": True}
    )
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 30


@pytest.mark.parametrize(
    ("wrong", "error", "param", "words"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model", "'model'"),
        ({"audio": {"voice": "x"}}, openai.BadRequestError, "audio", "text"),
        ({"max_tokens": 600}, openai.BadRequestError, "max_tokens", "512 tokens"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs", "logprobs"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "2"),
        ({"tools": TOOLS}, openai.BadRequestError, "tools", "TOOL_CALLS"),
        (
            {"messages": TOO_LONG},
            openai.BadRequestError,
            "messages",
            "maximum context length is 512 tokens. However, .* 731",
        ),
        ({"response_format": WRONG_SCHEMA}, openai.BadRequestError, "response_format", "no"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_openais_form(
    sample: Any, wrong: Any, error: type[openai.APIStatusError], param: str, words: str, stream: Any
) -> None:
    body = {"model": "model", "messages": QUESTION, "stream": stream} | wrong
    with pytest.raises(error, match=words) as caught:
        sample.client.chat.completions.create(**body)
    assert caught.value.param == param


def test_models_are_listed(sample: Any) -> None:
    assert [model.id for model in sample.client.models.list()] == ["model"]
    assert sample.client.models.retrieve("model").owned_by == "nemo-trt"
    with pytest.raises(openai.NotFoundError):
        sample.client.models.retrieve("other")
