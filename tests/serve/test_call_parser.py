"""Calls are read as they are written, wherever the pieces are cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_trt.serve.call_parser import CallParser

pytestmark = pytest.mark.unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex("[a-z_]{1,9}", fullmatch=True)
CALL = st.tuples(NAMES, JSON).map(lambda pair: {"name": pair[0], "arguments": pair[1]})
CALLS = st.lists(CALL, min_size=1, max_size=3)


def read(pieces: list[str]) -> tuple[list[list[str]], bool]:
    parser = CallParser()
    found: list[list[str]] = []
    for piece in pieces:
        for news in parser.push(piece):
            if news.name is not None:
                assert news.index == len(found)
                found.append([news.name, ""])
            found[news.index][1] += news.arguments
    return found, parser.complete


@given(calls=CALLS, width=st.integers(1, 9), indent=st.none() | st.just(1), ascii=st.booleans())
def test_pieces_of_any_width_give_the_calls(
    calls: Any, width: int, indent: int | None, ascii: bool
) -> None:
    text = json.dumps(calls, indent=indent, ensure_ascii=ascii)
    found, complete = read([text[at : at + width] for at in range(0, len(text), width)])
    assert complete
    assert [{"name": name, "arguments": json.loads(said)} for name, said in found] == calls


def test_a_call_that_is_cut_off_is_a_part_of_it() -> None:
    assert read(['[{"name": "f", "arguments": {"a": "b']) == ([["f", '{"a": "b']], False)
    assert read(['[{"name": "f']) == ([], False)


def test_an_id_behind_the_arguments_is_passed_over() -> None:
    text = '[{"name": "f", "arguments": {}, "id": "abc123XYZ"}, {"name": "g", "arguments": 3}]'
    assert read([text]) == ([["f", "{}"], ["g", "3"]], True)
