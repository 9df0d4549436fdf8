"""Notes of a request: what is not known is not logged."""

from typing import Any

import pytest

from nemo_trt.serve.http import request_log

pytestmark = pytest.mark.unit


def test_a_field_without_a_value_is_left_out_and_what_stood_there_stays() -> None:
    notes: dict[str, Any] = {"request_id": "a", "end": "stop"}
    token = request_log.begin(notes)
    request_log.note(user=None, end=None, prompt_tokens=0, relaxed_schemas=[])
    request_log.end(token)
    assert notes == {"request_id": "a", "end": "stop", "prompt_tokens": 0, "relaxed_schemas": []}


def test_notes_without_a_request_go_nowhere() -> None:
    request_log.note(user="x")
    assert request_log.request_id() == ""
