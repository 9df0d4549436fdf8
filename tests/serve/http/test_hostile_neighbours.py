"""A stream goes on while its neighbours' requests are prepared, however long that takes.

The preparation of each hostile request is held until the neighbour has its whole answer: what ran
on the event loop, or in the engine's thread, would hold the neighbour up for good.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from nemo_trt.serve.grammars import Grammars
from nemo_trt.serve.http import bodies

pytestmark = pytest.mark.model

LIMIT_S = 60
"""For which a preparation is held at most, so that a test that fails ends."""
HOSTILE = "hostile " * 8
USER = {"role": "user", "content": "x"}
CHAT, ASK = "/v1/chat/completions", {"messages": [USER]}
SCHEMA = {"type": "object", "properties": {HOSTILE: {}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "a body": (CHAT, {"messages": [USER | {"annotations": HOSTILE + " " * 40_000}]}),
    "a schema": (CHAT, ASK | {"response_format": FORMAT, "n": 2}),
    "a grammar": (CHAT, ASK | {"guided_grammar": f'start: "{HOSTILE}"'}),
    "a prediction": (CHAT, ASK | {"prediction": {"type": "content", "content": HOSTILE}}),
    "a prompt": ("/v1/completions", {"prompt": HOSTILE}),
    "text to tokenize": ("/tokenize", {"prompt": HOSTILE}),
}


class Held:
    """Makes functions wait where an argument of theirs is hostile."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.held_up = False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if (
                any(
                    "hostile" in str(bytes(a) if isinstance(a, bytearray) else a) for a in arguments
                )
                and not self.go.is_set()
            ):
                self.entered.set()
                self.held_up |= not self.go.wait(LIMIT_S)
            return function(*arguments, **options)

        return call


@pytest.mark.parametrize("name", ATTACKS)
def test_a_stream_ends_while_its_neighbour_is_prepared(
    tekken: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, hostile = ATTACKS[name]
    held = Held()
    if name == "a body":
        monkeypatch.setattr(bodies, "_validated", held.around(bodies._validated))
    for method in ("json_schema", "lark"):
        monkeypatch.setattr(Grammars, method, held.around(getattr(Grammars, method)))
    tokenizer = tekken.app.state.service.engine.tokenizer
    monkeypatch.setattr(tokenizer, "encode", held.around(tokenizer.encode))
    answers: list[int] = []

    def attack() -> None:
        body = hostile if path == "/tokenize" else hostile | {"max_tokens": 1}
        answers.append(httpx.post(tekken.url + path, json=body, timeout=300).status_code)

    attacking = threading.Thread(target=attack)
    ask = {"prompt": [5] * 8, "max_tokens": 100, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{tekken.url}/v1/completions", json=ask, timeout=300) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        attacking.start()
        assert held.entered.wait(LIMIT_S)
        rest = list(lines)
    held.go.set()
    attacking.join()
    assert "data: [DONE]" in rest
    assert not held.held_up
    assert answers == [200]


def test_a_request_without_a_grammar_waits_for_none(
    tekken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    monkeypatch.setattr(Grammars, "lark", held.around(Grammars.lark))
    answers: list[int] = []

    def attack() -> None:
        body = ASK | {"guided_grammar": f'start: "{HOSTILE}"', "max_tokens": 1}
        answers.append(httpx.post(tekken.url + CHAT, json=body, timeout=300).status_code)

    attacking = [threading.Thread(target=attack) for _ in range(4)]
    for thread in attacking:
        thread.start()
    assert held.entered.wait(LIMIT_S)
    plain = httpx.post(tekken.url + CHAT, json=ASK | {"max_tokens": 1}, timeout=300)
    held.go.set()
    for thread in attacking:
        thread.join()
    assert plain.status_code == 200
    assert not held.held_up
    assert answers == [200] * 4


@pytest.mark.parametrize("kind", ["guided_json", "response_format", "tools"])
def test_a_grammar_that_takes_minutes_is_a_400_that_names_its_field(tekken: Any, kind: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 9_999_991}}}
    forms: dict[str, Any] = {
        "guided_json": schema,
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
    }
    answer = httpx.post(tekken.url + CHAT, json=ASK | {kind: forms[kind]}, timeout=300)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == kind
    assert "must take at most 1 s and 512 MiB to compile" in error["message"]
