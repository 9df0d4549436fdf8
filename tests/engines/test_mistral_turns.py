"""Conversations that clients send and mistral-common refuses: encoded as the model wrote them."""

from typing import Any

import pytest

from nemo_trt.engines.tokenizers.mistral_turns import simplify
from nemo_trt.engines.tokenizers.turns import merge_turns

pytestmark = pytest.mark.unit

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "21"}
END, CALLS = 2, 9


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | ({"tool_calls": [*calls]} if calls else {})


def letters(text: str) -> list[int]:
    return [100 + ord(letter) for letter in text]


def test_late_system_messages_come_first_and_neighbours_are_joined() -> None:
    turns = [user("a"), assistant("b"), {"role": "system", "content": "S"}, user("c"), user("d")]
    merged = merge_turns(turns)
    assert [turn["role"] for turn in merged] == ["system", "user", "assistant", "user"]
    assert merged[-1]["content"] == "c\n\nd"


def test_results_of_tools_stay_apart_and_calls_are_joined() -> None:
    merged = merge_turns([user("a"), assistant("x", CALL), assistant(None, CALL), RESULT, RESULT])
    assert [turn["role"] for turn in merged] == ["user", "assistant", "tool", "tool"]
    assert merged[1]["tool_calls"] == [CALL, CALL] and merged[1]["content"] == "x"


def test_text_beside_calls_stands_before_them_and_an_empty_answer_stays_empty() -> None:
    turns = [user("a"), assistant(""), user("b"), assistant("hi", CALL), RESULT]
    plain, restored = simplify(turns)
    assert plain[1]["content"] and plain[3]["content"] is None
    placeholder = letters(plain[1]["content"])
    tokens = [50, *placeholder, END, 51, CALLS, 60, END, 52]
    assert restored(tokens, END, CALLS, letters) == [
        *(50, END, 51),
        *letters("hi"),
        *(CALLS, 60, END, 52),
    ]


def test_an_empty_turn_at_the_end_is_nothing_to_continue() -> None:
    plain, restored = simplify([user("a"), assistant("")])
    assert plain == [user("a")] and restored([1, 2], END, CALLS, letters) == [1, 2]
