"""Chat templates of many families, each rendered as transformers renders it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.engines.tokenizers.chat_template import ChatTemplates
from nemo_trt.errors import RequestError

from .more_chat_formats import COHERE, COHERE_RAG, COHERE_TOOLS, FORMATS

pytestmark = pytest.mark.model  # transformers is the judge

SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": "What is the weather in Paris?\n\n<b>é</b> "}
ANSWER = {"role": "assistant", "content": 'Sunny: 🙂 "warm".\n'}
THOUGHT = {"role": "assistant", "content": "<think>\nParis?\n</think>\n\nSunny."}
NEXT = {"role": "user", "content": "And now?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdef123",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3}},
        }
    ],
}
CALL_AS_TEXT = {
    **CALL,
    "content": "Let me see.",
    "tool_calls": [
        {
            "id": "abcdef123",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "weather", "content": '{"t": 21}'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather <of> a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}},
]
CHATS: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "no system": ([USER], None),
    "system": ([SYSTEM, USER], None),
    "several turns": ([USER, ANSWER, NEXT], None),
    "system and several turns": ([SYSTEM, USER, THOUGHT, NEXT, ANSWER, USER], None),
    "tools": ([SYSTEM, USER], TOOLS),
    "tool result": ([USER, CALL, RESULT], TOOLS),
    "tool result and on": ([SYSTEM, USER, CALL_AS_TEXT, RESULT, ANSWER, NEXT], TOOLS),
    "thoughts apart": (
        [USER, {"role": "assistant", "content": "4", "reasoning": "2 + 2"}, NEXT],
        None,
    ),
    "ends with an answer": ([SYSTEM, USER, ANSWER], None),
    "two of one role": ([USER, NEXT], None),
    "late system": ([USER, ANSWER, SYSTEM, NEXT], None),
    "unknown role": ([{"role": "poet", "content": "x"}], None),
}
FINALS = ["Sunny, ", " two\n\nlines \n", "", "assistant", "end", "What is the weather"]
NAMED = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}


@pytest.fixture(scope="module")
def judge(sample_tokenizer: Path) -> Any:
    """transformers' tokenizer; its template is given with each call."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(sample_tokenizer / "tokenizer.json"), **NAMED)


def rendered(render: Any) -> str | None:
    """The text, or None where the conversation is refused."""
    from jinja2 import TemplateError

    try:
        return str(render())
    except (RequestError, TemplateError, TypeError, ValueError, KeyError):
        return None


@pytest.mark.parametrize("family", FORMATS)
def test_every_conversation_is_rendered_as_transformers_renders_it(family: str, judge: Any) -> None:
    template = FORMATS[family]
    ours = ChatTemplates({"default": template}, NAMED)
    shown = 0
    for name, (messages, tools) in CHATS.items():
        for variables in ({}, {"enable_thinking": False, "date_string": "1 Jan 2026"}):
            expected = rendered(
                lambda m=messages, t=tools, v=variables: judge.apply_chat_template(
                    m, t, chat_template=template, tokenize=False, add_generation_prompt=True, **v
                )
            )
            found = rendered(
                lambda m=messages, t=tools, v=variables: ours.render(m, t, variables=v)
            )
            assert found == expected, name
            shown += expected is not None
    assert shown >= 4


@pytest.mark.parametrize("family", FORMATS)
def test_every_answer_is_continued_as_transformers_continues_it(family: str, judge: Any) -> None:
    template = FORMATS[family]
    ours = ChatTemplates({"default": template}, NAMED)
    for final in FINALS:
        messages = [USER, {"role": "assistant", "content": final}]
        expected = rendered(
            lambda m=messages: judge.apply_chat_template(
                m, chat_template=template, tokenize=False, continue_final_message=True
            )
        )
        found = rendered(lambda m=messages: ours.render(m, None, continue_final=True))
        assert found == expected, final
    pieces = [USER, {"role": "assistant", "content": [{"type": "text", "text": "Sun"}]}]
    expected = rendered(
        lambda: judge.apply_chat_template(
            pieces, chat_template=template, tokenize=False, continue_final_message=True
        )
    )
    assert rendered(lambda: ours.render(pieces, None, continue_final=True)) == expected


@pytest.mark.parametrize(
    "shown",
    ["", "{{ m.content }}{{ m.content }}", "{{ m.content[:3] }}"],
    ids=["never", "twice", "cut"],
)
def test_an_answer_that_a_template_does_not_show_once_is_not_continued(shown: str) -> None:
    ours = ChatTemplates({"default": f"{{% for m in messages %}}{shown}{{% endfor %}}"}, {})
    with pytest.raises(RequestError, match="shown once"):
        ours.render([USER, ANSWER], None, continue_final=True)


FILTERS = {
    "escapes": "{{ messages[0].content | tojson }}",
    "ASCII": "{{ messages | tojson(true) }}",
    "ASCII by name": "{{ messages | tojson(ensure_ascii=False) }}",
    "a number is ensure_ascii": "{{ messages | tojson(2) }}",
    "indent": "{{ messages | tojson(indent=2) }}",
    "all arguments": "{{ {'b': 1, 'a': [1]} | tojson(false, 1, (',', ':'), true) }}",
    "separators": "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
    "unknown argument": "{{ messages | tojson(allow_nan=true) }}",
    "dict": "{{ dict(a=1, **{'b': 2}).items() | list }}{{ dict.fromkeys(['x'], 1) }}",
    "namespace": "{% set ns = namespace(a=1) %}{% set ns.b = ns.a + 1 %}{{ ns.b }}",
    "private namespace": "{% set ns = namespace(_a=1) %}{{ ns }}",
    "mutation": "{{ messages.append(1) }}",
    "escape": "{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
    "no documents": "{{ documents is defined }}{{ tools is defined }}{{ documents }}",
    "dates": "{{ strftime_now('%%') }}{{ strftime_now('%Y') | length }}",
    "format": "{{ '%s-%5d' % ('a', 3) }}{{ '{:>4}|{x}'.format('b', x=1) }}{{ '%s' | format(1) }}",
    "loops": "{% for a in [1, 2, 3] if a != 2 recursive %}{{ loop.index }}/{{ loop.length }}"
    "{{ loop.revindex }}{{ loop.cycle('x', 'y') }}{{ loop.changed(a) }}{% else %}none{% endfor %}",
    "recursion": "{% for a in [[1, [2]], 3] recursive %}{{ loop(a) if a is iterable else a }}"
    "{% endfor %}",
    "numbers": "{{ 7 // 2 }}{{ -7 % 3 }}{{ 2 ** 10 }}{{ 1 / 4 }}{{ 3 * 'ab' }}{{ [1] * 2 }}",
    "texts": "{{ 'a,b,,c'.split(',') }}{{ ' x '.strip() }}{{ 'x'.join(['a', 'b']) }}"
    "{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ 'aXb'.replace('X', '-') }}{{ 'a\nb'.splitlines() }}",
    "joins": "{{ messages | map(attribute='role') | join(', ') }}{{ [1, 2] | join }}",
    "lists": "{{ range(5) | batch(2) | list }}{{ range(5) | slice(2) | map('list') | list }}",
    "groups": "{% for role, group in messages | groupby('role') %}{{ role }}{% endfor %}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{{ nothing.at_all }}",
    "concatenation": "{{ 1 ~ none ~ true ~ [1, 'a'] ~ {'a': 1} ~ nothing }}",
    "blocks": "{% block a %}x{% endblock %}{{ self.a() }}{% filter upper %}y{% endfilter %}",
    "arguments": "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}"
    "{{ f(1) }}{{ f(1, 2, 3, c=4) }}",
    "comparisons": "{{ 1 < 2 < 3 }}{{ 'a' in 'abc' }}{{ [1] == [1] }}{{ 'r' in {'r': 1} }}",
    "generation": "{% generation %}{% set x = 1 %}{{ messages[0].role }}{% endgeneration %}{{ x }}",
    "unknown tag": "{% trans %}{% endtrans %}",
    "import": "{% import 'x' as y %}",
}


@pytest.mark.parametrize("name", FILTERS)
def test_what_templates_can_call_is_what_transformers_gives_them(name: str, judge: Any) -> None:
    template = FILTERS[name]
    expected = rendered(
        lambda: judge.apply_chat_template([USER, ANSWER], chat_template=template, tokenize=False)
    )
    found = rendered(
        lambda: ChatTemplates({"default": template}, NAMED).render([USER, ANSWER], None)
    )
    assert found == expected


SPECIAL: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "a map beside": ({}, NAMED),
    "a map of objects": ({}, {"eos_token": {"content": "<|im_end|>", "lstrip": False}}),
    "the map counts": ({"eos_token": "<|endoftext|>"}, {"eos_token": "<|im_end|>"}),
    "a map that newer files replace": (
        {"added_tokens_decoder": {}, "eos_token": "<|endoftext|>"},
        {"eos_token": "<|im_end|>"},
    ),
    "all names": (
        {f"{name}_token": "<|im_end|>" for name in ("bos", "sep", "cls", "mask", "pad", "unk")},
        None,
    ),
    "tokens of other names": ({"image_token": "<|im_end|>", "add_bos_token": False}, None),
    "named extra tokens": ({"extra_special_tokens": {"boi_token": "<|im_end|>"}}, None),
    "model's own tokens": ({"model_specific_special_tokens": {"odd": "<|im_end|>"}}, None),
    "a list of extra tokens": ({"extra_special_tokens": ["<|im_end|>"]}, None),
    "added tokens that are objects": (
        {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True}},
        None,
    ),
    "an entry of the vocabulary made special": ({"eos_token": "hello"}, None),
}
SHOW_ALL = "".join(
    f"[{{{{ {name} }}}}]"
    for name in (
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
        *("mask_token", "image_token", "boi_token", "odd", "extra_special_tokens"),
    )
)


@pytest.fixture
def templated(tmp_path: Path, sample_tokenizer: Path) -> Path:
    shutil.copyfile(sample_tokenizer / "tokenizer.json", tmp_path / "tokenizer.json")
    return tmp_path


def both(folder: Path, messages: list[Any], **how: Any) -> tuple[list[int], list[int]]:
    """Tokens of a chat: ours and transformers', opened on one folder."""
    from transformers import AutoTokenizer

    tools = how.pop("tools", None)
    ours = open_tokenizer(folder).chat(messages, tools, variables=how)
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tools, add_generation_prompt=True, tokenize=True, return_dict=True, **how
    )["input_ids"]
    return ours, expected


@pytest.mark.parametrize("name", SPECIAL)
def test_special_tokens_have_the_names_that_transformers_gives_them(
    name: str, templated: Path
) -> None:
    config, beside = SPECIAL[name]
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": SHOW_ALL + " hello"}
    (templated / "tokenizer_config.json").write_text(json.dumps(kind | config))
    if beside:
        (templated / "special_tokens_map.json").write_text(json.dumps(beside))
    ours, expected = both(templated, [NEXT])
    assert ours == expected


@pytest.mark.parametrize("where", ["a list", "a folder"])
@pytest.mark.parametrize("chosen", [None, "rag", "default"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_named_templates_are_chosen_as_transformers_chooses_them(
    where: str, chosen: str | None, tools: Any, templated: Path
) -> None:
    named = {"default": COHERE, "tool_use": COHERE_TOOLS, "rag": COHERE_RAG}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}
    if where == "a list":
        config["chat_template"] = [{"name": n, "template": t} for n, t in named.items()]
    else:
        folder = templated / "additional_chat_templates"
        folder.mkdir()
        for name, text in named.items():
            path = (
                templated / "chat_template.jinja" if name == "default" else folder / f"{name}.jinja"
            )
            path.write_text(text)
    (templated / "tokenizer_config.json").write_text(json.dumps(config))
    how: dict[str, Any] = {"documents": [{"title": "t", "text": "x"}], "tools": tools}
    ours, expected = both(templated, [USER], **how, **({"chat_template": chosen} if chosen else {}))
    assert ours == expected


def test_a_template_that_cannot_be_compiled_stops_chats_alone(templated: Path) -> None:
    (templated / "chat_template.jinja").write_text("{% for m in %}")
    tokenizer = open_tokenizer(templated)
    assert tokenizer.decode(tokenizer.encode("Hello", bos=False)) == "Hello"
    for use in (lambda: tokenizer.chat([USER]), tokenizer.require_usable):
        with pytest.raises(RequestError, match="chat template must be valid Jinja"):
            use()


def test_variables_that_have_their_own_fields_and_unknown_names_of_templates_are_refused() -> None:
    ours = ChatTemplates({"default": "{{ x }}{{ bos_token }}", "rag": ""}, NAMED)
    assert ours.render([USER], None, variables={"x": 1, "bos_token": "b"}) == "1b"
    with pytest.raises(RequestError, match="chat_template_kwargs must not hold messages"):
        ours.render([USER], None, variables={"messages": []})
    with pytest.raises(RequestError, match="one of this tokenizer's templates, 'default', 'rag'"):
        ours.render([USER], None, variables={"chat_template": "{{ 1 }}"})
    with pytest.raises(RequestError, match="no chat template"):
        ChatTemplates({}, {}).render([USER], None)
