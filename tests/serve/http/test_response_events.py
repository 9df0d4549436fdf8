"""Text that is held back when calls begin comes before them, whole, streamed and in events."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.generation import Generation
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.serve.http.chat import whole
from nemo_trt.serve.http.chat_run import Choice, Delta
from nemo_trt.serve.http.response_events import ResponseWriter

pytestmark = pytest.mark.unit

TRIGGER, END, VOCAB = 256, 257, 258
CALLS = b'[{"name": "f", "arguments": {"a": 1}}]'


class Bytes:
    """A tokenizer of bytes, and two special tokens."""

    bos_id, eos_ids, vocab_size, tool_calls_id = None, (END,), VOCAB, TRIGGER

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        return bytes([token_id]) if token_id < TRIGGER else b""


def deltas(before: bytes, *, stop: tuple[str, ...] = (), calls: bytes = CALLS) -> list[Delta]:
    """News of an answer that a real `Generation` makes of these bytes."""
    tokenizer: Any = Bytes()
    config: Any = SimpleNamespace(vocab_size=VOCAB, eos_token_ids=(END,))
    tokens = [*before, TRIGGER, *calls, END]
    params = SamplingParams(max_tokens=len(tokens), stop=stop)
    generation = Generation(0, [1], params, config, tokenizer)
    choice, found = Choice(tokenizer, TRIGGER, False), []
    for token in tokens:
        found.append(
            choice.push(generation.next(np.eye(VOCAB, dtype=np.float32)[token], last=False))
        )
        if found[-1].reason:
            break
    return found


def built(news: list[Delta]) -> list[dict[str, Any]]:
    """Items of output, each seen to be that of its events."""
    writer = ResponseWriter({"output": [], "status": "in_progress"})
    events = [event for delta in news for event in writer.push(delta)]
    for event in events:
        if event["type"] == "response.output_text.delta":
            assert writer.result["output"][event["output_index"]]["type"] == "message"
    items: list[dict[str, Any]] = writer.result["output"]
    return items


HELD = {
    "half a character": (b"Hi \xe2\x82", (), "Hi \ufffd"),
    "what could become a stop string": (b"Hi", ('Hi[{"name": "f", "arguments": {"b',), "Hi"),
    "both": (b"Hi\xe2", ("\ufffd[[",), "Hi\ufffd"),
    "nothing": (b"", (), ""),
}


@pytest.mark.parametrize("name", HELD)
def test_what_was_held_back_comes_before_the_calls(name: str) -> None:
    before, stop, text = HELD[name]
    news = deltas(before, stop=stop)
    assert "".join(delta.text for delta in news) == text
    first = next(at for at, delta in enumerate(news) if delta.calls)
    assert not any(delta.text for delta in news[first + 1 :])
    items = built(news)
    assert [item["type"] for item in items] == ["message"] * bool(text) + ["function_call"]
    assert json.loads(items[-1]["arguments"]) == {"a": 1}
    assert {item["status"] for item in items} == {"completed"}
    if text:
        assert items[0]["content"][0]["text"] == text

    async def run() -> Any:
        for delta in news:
            yield delta

    (choice,) = asyncio.run(whole(SimpleNamespace(answers=[0], deltas=run)))  # type: ignore[arg-type]
    assert choice["message"]["content"] == (text or None)
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}


def test_a_stop_string_that_ends_in_the_calls_is_not_shown() -> None:
    news = deltas(b"Hi you", stop=("you[",))
    assert "".join(delta.text for delta in news) == "Hi "
    assert news[-1].reason == "stop" and not any(delta.calls for delta in news)


def test_calls_that_are_cut_in_their_name_leave_the_text() -> None:
    news = deltas(b"Hi\xe2", calls=b'[{"na')
    assert "".join(delta.text for delta in news) == "Hi\ufffd"
    assert news[-1].reason == "stop" and not any(delta.calls for delta in news)
