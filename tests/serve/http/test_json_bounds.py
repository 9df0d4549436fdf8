"""What a JSON text holds is counted rightly, however it comes and whatever its strings hold."""

import json
import random
from typing import Any

import pytest

from nemo_trt.serve.http.json_bounds import (
    MAX_DEPTH,
    MAX_NAMED,
    MAX_TEXTS,
    MAX_VALUES,
    JsonBounds,
    JsonTooLarge,
    require_bounded,
)

pytestmark = pytest.mark.unit

RANDOM = random.Random(5)


def drawn(depth: int) -> Any:
    kind = RANDOM.random()
    if depth and kind < 0.3:
        return [drawn(depth - 1) for _ in range(RANDOM.randrange(4))]
    if depth and kind < 0.6:
        return {text(): drawn(depth - 1) for _ in range(RANDOM.randrange(4))}
    return text() if kind < 0.9 else RANDOM.randrange(100)


def text() -> str:
    return "".join(RANDOM.choice('\\"{}[],:aé😀\n') for _ in range(RANDOM.randrange(8)))


def named(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(named, value.values()))
    return 1 + sum(map(named, value)) if isinstance(value, list) else 0


def texts(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(texts, value.values()))
    return sum(map(texts, value)) if isinstance(value, list) else isinstance(value, str)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_counts_are_those_of_what_the_parser_makes(ascii_only: bool) -> None:
    for _ in range(300):
        value = drawn(5)
        body = json.dumps(value, ensure_ascii=ascii_only).encode()
        bounds, at = JsonBounds(), 0
        while at < len(body):
            size = RANDOM.randrange(1, 7)
            bounds.feed(body[at : at + size])
            at += size
        found = bounds._named, bounds._texts, bounds._depth
        assert found == (named(value), texts(value), 0), body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" + b"{}," * MAX_NAMED, "objects"),
        (b'{"a":1,' + b'"b":2,' * MAX_NAMED, "objects"),
        (b"[" + b"1," * (MAX_VALUES + 1), "values"),
        (b"[" + b'"\\\\","a",' * (MAX_TEXTS // 2 + 1), "strings"),
        (b"[" * (MAX_DEPTH + 1), "deep"),
        (b'[{"a":' * (MAX_DEPTH // 2) + b"[", "deep"),
    ],
)
def test_too_much_is_refused(body: bytes, words: str) -> None:
    for size in (len(body), 1000, MAX_DEPTH // 2):
        bounds = JsonBounds()
        with pytest.raises(JsonTooLarge, match=words):
            for at in range(0, len(body), size):
                bounds.feed(body[at : at + size])


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "' + b"[{,:" * 2**20 + b'"}',
        b'{"prompt": "' + rb"\"[{,:" * 2**18 + b'"}',
        b'{"prompt": "' + rb"\\\"[,:" * 2**18 + b'"}',
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" + b"[]," * (MAX_NAMED - 1) + b"]",
        b"[" + b"1," * (MAX_VALUES - 1) + b"]",
        b'["a"' + b',"b"' * (MAX_TEXTS - 1) + b"]",
    ],
)
def test_as_much_as_is_allowed_passes_and_strings_hold_what_they_like(body: bytes) -> None:
    for size in (len(body), 1000):
        bounds = JsonBounds()
        for at in range(0, len(body), size):
            bounds.feed(body[at : at + size])


def test_json_within_a_string_is_bounded_too() -> None:
    require_bounded('{"a": 1}', "arguments")
    with pytest.raises(JsonTooLarge, match=r"^arguments must hold at most"):
        require_bounded("[" + "{}," * MAX_NAMED, "arguments")
    require_bounded("\ud800" * 5000, "arguments")  # another check's business
