"""Values in errors: short whatever they are, and nothing of them is read in vain."""

import json
from collections import OrderedDict
from typing import Any

import pytest

from nemo_trt.shown import shown

pytestmark = pytest.mark.unit


class Named(str):
    """A text of a type of its own."""


class Listed(list[Any]):
    """A list of a type of its own."""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, None, True, 1.5]}, "{'a': [1, None, True, 1.5]}"),
        (OrderedDict(b=1, a=2), "{'b': 1, 'a': 2}"),
        ((1,), "(1,)"),
        ("x" * 99, repr("x" * 99)),
        (10**5000, "an integer of 16610 bits"),
        ([10**5000], "[an integer of 16610 bits]"),
        (b"abc", "b'abc'"),
        (object(), "a value of type object"),
        ([[[[1]]]], "[[[[...]]]]"),
        (Listed([Named("a")]), "['a']"),
    ],
    ids=[
        "dict",
        "ordered",
        "tuple",
        "text",
        "integer",
        "integers",
        "bytes",
        "object",
        "deep",
        "own",
    ],
)
def test_a_value_is_shown_as_it_is_where_it_is_short(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        Named("x" * 10**7),
        b"x" * 10**7,
        OrderedDict.fromkeys(range(10**5)),
        {"a" * 10**6: ["b" * 10**6] * 10**5},
        Listed([OrderedDict(a="c" * 10**6)] * 1000),
        json.loads("[" * 500 + "]" * 500),
        {n: {m: dict.fromkeys(range(9), "d" * 10**4) for m in range(9)} for n in range(9)},
    ],
    ids=["text", "own text", "bytes", "ordered", "dict", "own list", "deep", "wide"],
)
def test_a_large_value_is_cut(value: object) -> None:
    assert len(shown(value)) < 15_000


def test_a_large_dictionary_is_not_sorted() -> None:
    class Key(str):
        __hash__ = str.__hash__

        def __lt__(self, other: object) -> bool:
            raise AssertionError("sorted")

    assert shown({Key("b"): 1, Key("a"): 2}) == "{'b': 1, 'a': 2}"
