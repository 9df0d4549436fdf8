"""What requests begin with, and who is thought to hold it."""

import json
from typing import Any

import pytest

from nemo_trt.serve.cluster.prefixes import BLOCK_CHARS, Beginnings, prefix_keys

pytestmark = pytest.mark.unit


def chat(*texts: str) -> bytes:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return json.dumps({"messages": messages}).encode()


def shared(one: bytes, other: bytes) -> int:
    pairs = zip(prefix_keys(one), prefix_keys(other), strict=False)
    return sum(first == second for first, second in pairs)


def test_a_longer_conversation_begins_like_the_shorter_one() -> None:
    first = "Tell me a story. " * 50
    short, long = chat(first), chat(first, "Once.", "And then?")
    assert shared(short, long) >= len(prefix_keys(short)) - 1 > 3


def test_what_differs_at_the_start_shares_nothing_even_where_it_is_equal_later() -> None:
    rest = "x" * 1000
    assert shared(chat("a" + rest), chat("b" + rest)) == 0
    assert shared(chat("a" * 300 + rest), chat("a" * 300 + "b" + rest)) == 2


@pytest.mark.parametrize(
    ("prompt", "blocks"),
    [
        ("x" * (3 * BLOCK_CHARS), 3),
        ("x" * (BLOCK_CHARS - 1), 0),
        (["x" * BLOCK_CHARS, "y" * 1000], 1),
        ([1000] * 100, 4),
        ([[1000] * 100, [1]], 4),
        (7, 0),
        ([], 0),
        (None, 0),
    ],
)
def test_prompts_of_every_kind_have_keys(prompt: Any, blocks: int) -> None:
    assert len(prefix_keys(json.dumps({"prompt": prompt}).encode())) == blocks


def test_the_responses_api_has_keys_like_the_chat_api() -> None:
    long = "x" * (3 * BLOCK_CHARS)
    items = [{"role": "user", "content": long}]
    text, listed = (json.dumps({"input": given}).encode() for given in (long, items))
    assert len(prefix_keys(text)) == 3 and len(prefix_keys(listed)) >= 3
    told = json.dumps({"instructions": long, "input": "Hello."}).encode()
    assert shared(told, json.dumps({"instructions": long, "input": "Bye."}).encode()) == 3


@pytest.mark.parametrize("system", ["x" * 3 * BLOCK_CHARS, [{"text": "x" * 3 * BLOCK_CHARS}]])
def test_anthropics_system_text_comes_before_the_messages(system: object) -> None:
    one, other = (
        json.dumps({"messages": [{"role": "user", "content": text}], "system": system}).encode()
        for text in ("Hello.", "Bye.")
    )
    assert shared(one, other) >= 3


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[1]", b"null", b"[" * 100_000, b"{}"])
def test_a_body_that_is_not_understood_has_none(body: bytes) -> None:
    assert prefix_keys(body) == ()


def test_the_replica_that_holds_most_comes_first() -> None:
    beginnings = Beginnings[str]()
    beginnings.remember("a", [1, 2])
    beginnings.remember("b", [1, 2, 3])
    for _ in range(10):
        assert beginnings.rank({"a": 0, "b": 0, "c": 0}, [1, 2, 3, 4], slack=1) == ["b", "a", "c"]


def test_a_prefix_is_followed_until_its_replica_is_busier_by_the_slack() -> None:
    beginnings = Beginnings[str]()
    beginnings.remember("a", [1])
    assert beginnings.rank({"a": 3, "b": 0}, [1], slack=4) == ["a", "b"]
    assert beginnings.rank({"a": 4, "b": 0}, [1], slack=4) == ["b", "a"]
    assert beginnings.rank({"a": 6, "b": 3}, [1], slack=4) == ["a", "b"]


def test_what_nobody_holds_goes_to_the_least_load_and_then_to_who_holds_least() -> None:
    beginnings = Beginnings[str]()
    beginnings.remember("a", [1, 2])
    beginnings.remember("b", [3])
    for _ in range(10):
        assert beginnings.rank({"a": 0, "b": 1}, [9], slack=4)[0] == "a"
        assert beginnings.rank({"a": 0, "b": 0}, [9], slack=4)[0] == "b"
        assert beginnings.rank({"a": 0, "b": 0}, [], slack=4)[0] == "b"


def test_equal_replicas_are_chosen_by_chance() -> None:
    beginnings = Beginnings[str]()
    firsts = {beginnings.rank({"a": 0, "b": 0, "c": 0}, [], slack=1)[0] for _ in range(200)}
    assert firsts == {"a", "b", "c"}


def test_what_was_used_longest_ago_is_forgotten_first_and_ends_before_beginnings() -> None:
    beginnings = Beginnings[str](capacity=3)
    beginnings.remember("a", [1, 2, 3])
    beginnings.remember("a", [1, 9])
    ranked = beginnings.rank({"a": 0, "b": 0}, [1, 2], slack=1)
    beginnings.remember("b", [1, 2, 3])
    assert ranked == ["a", "b"]
    assert beginnings.rank({"a": 0, "b": 0}, [1, 2, 3], slack=1) == ["b", "a"]


def test_a_beginning_that_is_used_again_outlives_what_is_not() -> None:
    beginnings = Beginnings[str](capacity=3)
    for keys in ([1, 2, 3], [1, 9], [8], [7]):
        beginnings.remember("a", keys)
    assert beginnings.rank({"a": 0, "b": 0}, [1], slack=1) == ["a", "b"]


def test_a_replica_that_is_gone_is_forgotten() -> None:
    beginnings = Beginnings[str]()
    beginnings.remember("a", [1, 2])
    beginnings.keep_only({"b"})
    beginnings.remember("b", [1])
    assert beginnings.rank({"a": 0, "b": 0}, [1, 2], slack=1)[0] == "b"


def test_of_a_prompt_longer_than_what_is_remembered_the_beginning_is() -> None:
    beginnings = Beginnings[str](capacity=3)
    beginnings.remember("a", [1, 2, 3, 4])
    beginnings.remember("b", [1])
    assert beginnings.rank({"a": 0, "b": 0}, [1, 2, 3, 4], slack=1) == ["a", "b"]
