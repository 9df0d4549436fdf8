"""Templates that would never end, or take all memory, are refused at a bounded cost."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nemo_trt.engines.tokenizers import template_budget
from nemo_trt.engines.tokenizers.chat_template import ChatTemplates
from nemo_trt.errors import RequestError

pytestmark = pytest.mark.unit

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]


def again(statement: str, start: str = "'a'") -> str:
    """A value that is made of itself sixty times."""
    return (
        f"{{% set ns = namespace(a={start}) %}}{{% for i in range(60) %}}{statement}"
        "{% endfor %}{{ ns.a }}"
    )


TWICE = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
HOSTILE = {
    "power": "{{ 9**(9**9) }}",
    "power of a negative number": "{{ (-9)**(9**9) }}",
    "squares": "{% set ns = namespace(a=10) %}" + again("{% set ns.a = ns.a * ns.a %}", "10"),
    "repeated text": "{{ 'a' * 10**9 }}",
    "a batch of a huge width": "{{ [1] | batch(10**12, 'x') | list | length }}",
    "a text in a huge width": "{{ 'a'.center(10**12) }}",
    "tabs of a huge width": "{{ '\t'.expandtabs(10**12) }}",
    "JSON with a huge indent": "{{ [1] | tojson(indent=10**12) }}",
    "% of a huge width": "{{ '%*d' % (10**12, 1) }}",
    "repeated on the right": "{{ 10**9 * 'a' }}",
    "repeated list": "{{ ([1] * 10**9) | length }}",
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "nested loops": TWICE.replace("BODY", ""),
    "nested loops that print nothing": TWICE.replace("BODY", "{% set x = 1 %}"),
    "nested loops that leave all out": TWICE.replace(
        "range(99999) %}BODY", "range(99999) if false %}"
    ),
    "calls in loops": "{% set c = cycler(1) %}" + TWICE.replace("BODY", "{% set x = c.next() %}"),
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "literal text": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "printed text": "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "doubled by +": again("{% set ns.a = ns.a + ns.a %}"),
    "doubled by ~": again("{% set ns.a = ns.a ~ ns.a %}"),
    "doubled by a block": again("{% set b %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = b %}"),
    "doubled by join": again("{% set ns.a = [ns.a, ns.a] | join %}"),
    "doubled by a method": again("{% set ns.a = ns.a.join(['', '', '']) %}"),
    "doubled by %": again("{% set ns.a = '%s%s' % (ns.a, ns.a) %}"),
    "doubled by format": again("{% set ns.a = '{0}{0}'.format(ns.a) %}"),
    "doubled by replace": again("{% set ns.a = ns.a.replace('a', ns.a) %}", "'aa'"),
    "doubled by a filter": again("{% set ns.a = ns.a | replace('a', ns.a) %}", "'aa'"),
    "doubled by indent": again("{% set ns.a = 'x\ny\nz' | indent(ns.a) %}"),
    "escaped again and again": again(
        "{% set ns.a = ns.a | string | forceescape | string | forceescape %}", "'&' * 99999"
    ),
    "shared lists": again("{% set ns.a = [ns.a, ns.a] %}"),
    "shared tuples": again("{% set ns.a = (ns.a, ns.a) %}"),
    "shared dicts": again("{% set ns.a = dict(a=ns.a, b=ns.a) %}"),
    "shared dict literals": again("{% set ns.a = {'a': ns.a, 'b': ns.a} %}"),
    "shared by fromkeys": again("{% set ns.a = {}.fromkeys([1, 2], ns.a) %}"),
    "shared arguments": "{% macro f() %}{% set ns.a = varargs %}{% endmacro %}"
    + again("{{ f(ns.a, ns.a) }}"),
    "shared by batch": again(
        "{% for b in [ns.a] | batch(2, ns.a) %}{% set ns.a = b %}{% endfor %}"
    ),
    "shared by map": again("{% set ns.a = range(2) | map(attribute='no', default=ns.a) | list %}"),
    "joined bit by bit": "{% set s = 'a' * 1000000 %}"
    "{{ range(99999) | map(attribute='no', default=s) | join }}",
    "joined by a method": "{% set s = 'a' * 1000000 %}"
    "{{ ''.join(range(99999) | map(attribute='no', default=s)) }}",
    "deep tuples": "{% set ns = namespace(a=1) %}{% for i in range(99999) %}"
    "{% set ns.a = (ns.a,) %}{% endfor %}{{ {ns.a: 1} }}",
    "padding": "{{ 'a'.ljust(10**9) }}",
    "padding by a filter": "{{ 'a' | center(10**9) }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "indent": "{{ ('\n' * 1000000) | indent(10**6) }}",
    "a wide field": "{{ '%999999999d' % 1 }}",
    "a wide field by name": "{{ '%*d' % (999999999, 1) }}",
    "a wide field of format": "{{ '{:999999999}'.format(1) }}",
    "a nested field": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "a field of a mapping": "{{ '{x:{w}}'.format_map({'x': 1, 'w': 999999999}) }}",
    "JSON with a wide indent": "{{ [1] | tojson(indent=999999999) }}",
    "JSON with wide separators": "{{ ([1] * 9999) | tojson(separators=('a' * 99999, ':')) }}",
    "digits": "{{ 1 | round(10**9, 'ceil') }}",
    "bytes of a number": "{{ (1).to_bytes(10**10, 'big') }}",
    "bytes": "{{ ('a' * 60000).encode().ljust(10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "striptags": "{{ ('<!---->' * 1000000) | striptags }}",
    "urlize": "{{ ('http://a.b ' * 1000000) | urlize }}",
    "sum of lists": "{{ range(9999) | map('string') | map('list') | sum(start=[]) | length }}",
    "a long search": "{% set l = range(99999) | list %}"
    "{% for i in range(99999) %}{% if -1 in l %}{% endif %}{% endfor %}",
    "a search by a test": "{% set l = range(99999) | list %}"
    "{{ range(99999) | select('in', l) | list | length }}",
    "kept slices": "{% set s = 'a' * 1000000 %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(999) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
    "a template that is too long": "x" * 2**19,
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep loops": "{% for a in [1] %}" * 100 + "{% endfor %}" * 100,
    "a number of many digits": "{{ " + "9" * 100_000 + " }}",
    "division by zero": "{{ 1 // 0 }}",
    "what is not there": "{{ none.x.y }}",
    "another file": "{% include 'x' %}",
}


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth: whatever has no end is beyond it as well, and sooner."""
    monkeypatch.setattr(template_budget, "_FIXED", template_budget._FIXED // 16)


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_without_an_end_is_refused_in_words(name: str) -> None:
    with pytest.raises(RequestError, match="chat template") as raised:
        ChatTemplates({"default": HOSTILE[name]}, {}).render(MESSAGES, None)
    assert not isinstance(raised.value.__cause__, MemoryError)  # nothing was taken before


@pytest.mark.parametrize(
    "template", ["{{ 'a' * 10**9 }}", "{{ 9**(9**9) }}", "{{ 'a' | center(10**9) }}"]
)
def test_nothing_is_computed_while_a_template_is_compiled(template: str) -> None:
    ChatTemplates({"default": template}, {}).require_usable()


def test_a_long_conversation_may_cost_more_than_a_short_one() -> None:
    template = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set ns.text = ns.text + m.role + ': ' + m.content | trim + '\n' %}{% endfor %}"
        "{{ ns.text }}"
    )
    turns = [{"role": "user", "content": "x" * 100_000} for _ in range(40)]
    text = ChatTemplates({"default": template}, {}).render(turns, None)
    assert len(text) == 40 * (100_000 + len("user: \n"))


@pytest.mark.parametrize(
    "content", [10**5000, [[0]] * 2], ids=["a number of many digits", "deep lists"]
)
def test_a_conversation_must_be_of_a_bounded_depth_and_of_bounded_numbers(content: Any) -> None:
    if isinstance(content, list):
        for _ in range(300):
            content = [content]
    with pytest.raises(RequestError, match="chat template"):
        ChatTemplates({"default": "{{ messages }}"}, {}).render(
            [{"role": "user", "content": content}], None
        )


@pytest.mark.usefixtures("small_budget")
def test_threads_that_render_one_template_count_apart() -> None:
    template = "{% for i in range(20000) %}{% endfor %}{{ messages[0].content }}"
    templates = ChatTemplates({"default": template}, {})
    with ThreadPoolExecutor(4) as pool:
        texts = [
            pool.submit(templates.render, [{"role": "user", "content": str(n)}], None)
            for n in range(12)
        ]
        assert [text.result() for text in texts] == [str(n) for n in range(12)]
