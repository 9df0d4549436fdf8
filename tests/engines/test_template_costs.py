"""Each kind of work in a template is charged by its size, so that no bound has to stand in for it.

Templates that never end are stopped by another bound where one charge is missing, at the latest by
the clock: they do not show a missing charge. Here each charge is measured alone.
"""

import pytest

from nemo_trt.engines.tokenizers.template_budget import CHARACTERS, ENTRY, STEP, Budget, spending
from nemo_trt.engines.tokenizers.template_sandbox import TemplateSandbox

pytestmark = pytest.mark.unit

APPLY, CALL = 3 * STEP, 10 * STEP
COPY = 1 / CHARACTERS  # a character
PRINTED = ENTRY + 2 * ENTRY * COPY  # an entry that is walked, and taken for its text
FOR = "{% for i in l %}BODY{% endfor %}"
MACRO = "{% macro f() %}BODY{% endmacro %}"
# Work -> a template over n entries (`l`, `t`) or characters (`s`, TEXT), units for each of them
COSTS = {
    "rounds": (FOR.replace("BODY", ""), STEP),
    "rounds with a variable": (FOR.replace("BODY", "{% set x = 1 %}"), STEP),
    "rounds of a recursive loop": ("{% for i in l recursive %}{% endfor %}", STEP),
    "rounds that are left out": ("{% for i in l if false %}{% endfor %}", STEP),
    "rounds that a condition keeps": ("{% for i in l if true %}{% endfor %}", 2 * STEP),
    "outputs": (FOR.replace("BODY", "{{ 1 }}"), 2 * STEP + ENTRY * COPY),
    "literal text": ("{{ '' }}TEXT", COPY),
    "printed text": ("{{ s }}", COPY),
    "printed lists": ("{{ l }}", PRINTED),
    "lists": ("{% set x = [l] %}", ENTRY),
    "tuples": ("{% set x = (l,) %}", ENTRY),
    "dicts": ("{% set x = {'a': l} %}", ENTRY),
    "slices of a text": ("{% set x = s[1:] %}", COPY),
    "slices of a list": ("{% set x = l[1:] %}", ENTRY),
    "~": ("{% set x = s ~ 'a' %}", COPY),
    "== on the left": ("{% set x = l == 1 %}", PRINTED),
    "== on the right": ("{% set x = 1 == l %}", PRINTED),
    "in": ("{% set x = 1 in l %}", PRINTED),
    "keys": ("{% set x = {}[t] %}", ENTRY),
    "operators": (FOR.replace("BODY", "{% set x = i - 1 %}"), 2 * STEP),
    "+ of a text": ("{% set x = s + 'a' %}", COPY),
    "+ of a text on the right": ("{% set x = 'a' + s %}", COPY),
    "+ of lists": ("{% set x = l + [1] %}", ENTRY + COPY),
    "* of a text": ("{% set x = 'a' * n %}", 2 * COPY),
    "* of a list": ("{% set x = [1] * n %}", PRINTED),
    "%": ("{% set x = '%s' % s %}", 2 * COPY),
    "filters": (FOR.replace("BODY", "{% set x = 1 | d %}"), STEP + APPLY + 2 * ENTRY),
    "tests": (FOR.replace("BODY", "{% set x = 1 is defined %}"), STEP + APPLY),
    "a test of a list": ("{% set x = 1 is in l %}", PRINTED),
    "calls": (FOR.replace("BODY", "{% set x = n.bit_length() %}"), STEP + CALL + 2 * ENTRY),
    "macros": (
        MACRO.replace("BODY", "") + FOR.replace("BODY", "{% set x = f() %}"),
        STEP + CALL,
    ),
    "varargs": (MACRO.replace("BODY", "{% set y = varargs %}") + "{% set x = f(l) %}", ENTRY),
    "kwargs": (MACRO.replace("BODY", "{% set y = kwargs %}") + "{% set x = f(a=l) %}", ENTRY),
    "list": ("{% set x = s | list %}", 2 * ENTRY),
    "map": ("{% set x = l | map('abs') | list %}", APPLY + 104),
    "batch": ("{% set x = l | batch(2) %}", PRINTED + ENTRY),
    "batch filled up": ("{% set x = [1] | batch(2, l) %}", 2 * ENTRY),
    "default": ("{% set x = 1 | d(l) %}", ENTRY),
    "upper": ("{% set x = s | upper %}", 2 * COPY),
    "sort": ("{% set x = l | sort %}", PRINTED + ENTRY),
    "join": ("{% set x = l | join(',') %}", PRINTED + 3 * COPY),
    "replace": ("{% set x = s | replace('x', 'y') %}", 4 * COPY),
    "tojson": ("{% set x = l | tojson %}", 64.75),
    "indent": ("{% set x = s | indent %}", 2 * COPY),
    "indent of lines": ("{% set x = ('\n' * n) | indent %}", 24 * COPY),
    "escape": ("{% set x = s | e %}", 7 * COPY),
    "sum": ("{% set x = l | sum %}", PRINTED),
    "format": ("{% set x = '%s' | format(s) %}", 2 * COPY),
    "center": ("{% set x = s | center(2) %}", 2 * COPY),
    "striptags": ("{% set x = s | striptags %}", 2 * COPY),
    "the method upper": ("{% set x = s.upper() %}", 2 * COPY),
    "the method split": ("{% set x = s.split('x') %}", 2 * ENTRY + COPY),
    "the method split at spaces": ("{% set x = s.split() %}", ENTRY / 2 + COPY),
    "the method splitlines": ("{% set x = s.splitlines() %}", ENTRY + COPY),
    "the method replace": ("{% set x = s.replace('x', 'y') %}", 4 * COPY),
    "the method join": ("{% set x = ','.join(['a'] * n) %}", 43.25),
    "the method format": ("{% set x = '{}'.format(s) %}", 3 * COPY),
    "the method encode": ("{% set x = s.encode() %}", 3 * COPY),
    "the method expandtabs": ("{% set x = ('\t' * n).expandtabs() %}", 1000 * COPY),
    "the method decode": ("{% set x = (b * n).decode() %}", 8 * COPY),
    "methods of a list": ("{% set x = l.count(1) %}", PRINTED),
    "methods of a dict": ("{% set x = {}.get(t) %}", ENTRY),
    "dict()": ("{% set x = dict(a=l) %}", PRINTED + ENTRY),
}


def spent(template: str, size: int) -> int:
    """Units that one rendering takes of its budget."""
    compiled = TemplateSandbox().from_string(template.replace("TEXT", "x" * size))
    budget = Budget({})
    before = budget._left
    with spending(budget):
        compiled.render(n=size, b=b"x", s="x" * size, l=[1] * size, t=(1,) * size)
    return before - budget._left


@pytest.mark.parametrize("name", COSTS)
def test_work_is_charged_by_its_size(name: str) -> None:
    template, units = COSTS[name]
    assert (spent(template, 2000) - spent(template, 1000)) / 1000 >= units
