"""Whatever a body holds, reading, parsing and validating it takes a small multiple of its bytes."""

import asyncio
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError

from nemo_trt.serve import ServeOptions
from nemo_trt.serve.http import anthropic_input, responses_input
from nemo_trt.serve.http.anthropic_schema import MessagesRequest
from nemo_trt.serve.http.bodies import _validated, read
from nemo_trt.serve.http.errors import ApiError
from nemo_trt.serve.http.json_bounds import MAX_NAMED, MAX_TEXTS, MAX_VALUES
from nemo_trt.serve.http.responses_schema import ResponsesRequest
from nemo_trt.serve.http.schema import ChatRequest, CompletionRequest, DetokenizeRequest

pytestmark = pytest.mark.unit

LIMIT = ServeOptions().max_body_bytes
TRANSLATED: dict[Any, Any] = {
    ResponsesRequest: responses_input.chat_request,
    MessagesRequest: anthropic_input.chat_request,
}
FACTOR, FIXED_BYTES = 5, 4 * 2**20
"""Memory for each byte of a body, and for the objects of the smallest bodies."""


def filled(start: bytes, piece: bytes, end: bytes, times: int | None = None) -> bytes:
    """A body of a piece again and again, up to the limit of bytes."""
    most = (LIMIT - len(start) - len(end)) // len(piece)
    return start + piece * min(most, most if times is None else times) + end


TEXT, LIST = b'{"prompt": "', b'{"prompt": [1'
CHAT, ITEMS = b'{"messages": [', b'{"input": ['
LAST = b'{"role":"user","content":"x"}'
FIELD = b'{"messages": [' + LAST + b'], "chat_template_kwargs": {"a": [1'
USER = b'{"role":"user","content":""},'
CALL = b'{"function":{"name":""},"id":""},'
CALLS = CHAT + b'{"role":"assistant","tool_calls":['
BLOCKS = b'{"max_tokens": 1, "messages": [{"role":"assistant","content":['
BODIES: dict[str, tuple[Any, bytes]] = {
    "ASCII and a character beyond 16 bits": (
        CompletionRequest,
        filled(TEXT, b"a", '🙂"}'.encode()),
    ),
    "ASCII and an escaped character beyond 16 bits": (
        CompletionRequest,
        filled(TEXT, b"a", rb'\ud83d\ude42"}'),
    ),
    "a message of such text": (
        ChatRequest,
        filled(CHAT + b'{"role":"user","content":"', b"a", '🙂"}]}'.encode()),
    ),
    "such text in an item": (
        ResponsesRequest,
        filled(ITEMS + b'{"role":"user","content":"', b"a", '🙂"}]}'.encode()),
    ),
    "text of two bytes a character": (CompletionRequest, filled(TEXT, "é".encode(), b'"}')),
    "text of four bytes a character": (CompletionRequest, filled(TEXT, "🙂".encode(), b'"}')),
    "escapes": (CompletionRequest, filled(TEXT, rb"\u0041", b'"}')),
    "pairs of escapes": (CompletionRequest, filled(TEXT, rb"\ud83d\ude42", b'"}')),
    "escaped quotes": (CompletionRequest, filled(TEXT, rb"\"", b'"}')),
    "half a surrogate pair": (CompletionRequest, filled(TEXT, b"a", rb"\ud83d" + '🙂"}'.encode())),
    "no UTF-8": (CompletionRequest, filled(TEXT, b"a", '🙂\xff"}'.encode("latin-1", "ignore"))),
    "small tokens": (CompletionRequest, filled(LIST, b",1", b"]}", MAX_VALUES - 2)),
    "tokens": (CompletionRequest, filled(LIST, b",300", b"]}", MAX_VALUES - 2)),
    "long tokens": (DetokenizeRequest, filled(b'{"tokens": [1', b",131071", b"]}", MAX_VALUES - 2)),
    "lists of tokens": (
        CompletionRequest,
        filled(
            b'{"prompt": [[1]', b",[1" + b",300" * (MAX_VALUES // 31 - 2) + b"]", b"]}", times=31
        ),
    ),
    "too many values": (CompletionRequest, filled(LIST, b",1", b"]}")),
    "integers of 4,000 digits": (CompletionRequest, filled(LIST, b"," + b"7" * 4000, b"]}")),
    "floats": (CompletionRequest, filled(LIST, b",2.5", b"]}", MAX_VALUES - 2)),
    "integers of a template": (ChatRequest, filled(FIELD, b",300", b"]}}", MAX_VALUES - 99)),
    "short texts": (CompletionRequest, filled(b'{"prompt": ["a"', b',"bc"', b"]}", MAX_TEXTS - 2)),
    "too many texts": (
        CompletionRequest,
        filled(b'{"prompt": ["a"', b',"bc"', b"]}", MAX_VALUES - 9),
    ),
    "messages": (ChatRequest, filled(CHAT, USER, LAST + b"]}", MAX_NAMED // 3 - 4)),
    "calls": (ChatRequest, filled(CALLS, CALL, CALL[:-1] + b"]}]}", MAX_NAMED // 5 - 4)),
    "parts": (
        ChatRequest,
        filled(
            CHAT + b'{"role":"user","content":[',
            b'{"type":"text","text":""},',
            b'{"type":"text","text":"x"}]}]}',
            MAX_NAMED // 3 - 4,
        ),
    ),
    "items": (ResponsesRequest, filled(ITEMS, USER, LAST + b"]}", MAX_NAMED // 3 - 4)),
    "turns": (
        MessagesRequest,
        filled(b'{"max_tokens": 1, "messages": [', USER, LAST + b"]}", MAX_NAMED // 3 - 4),
    ),
    "blocks": (
        MessagesRequest,
        filled(
            BLOCKS,
            b'{"type":"tool_use","id":"","name":"","input":{}},',
            b'{"type":"text","text":""}]}]}',
            MAX_NAMED // 6 - 4,
        ),
    ),
    "a long text in a block": (
        MessagesRequest,
        filled(BLOCKS + b'{"type":"text","text":"', b"x", '🙂"}]}]}'.encode()),
    ),
    "the input of a call": (
        MessagesRequest,
        filled(
            BLOCKS + b'{"type":"tool_use","id":"","name":"","input":{"a":[1',
            b",300",
            b"]}}]}]}",
            MAX_VALUES - 99,
        ),
    ),
    "objects": (ChatRequest, filled(FIELD, b",{}", b"]}}", MAX_NAMED - 99)),
    "members": (
        ChatRequest,
        CHAT
        + LAST
        + b'], "chat_template_kwargs": {"a": {'
        + b",".join(b'"%d":1' % at for at in range(MAX_NAMED - 99))
        + b"}}}",
    ),
    "a field of the largest name": (ChatRequest, filled(b'{"', b"x", '🙂": 1}'.encode())),
    "a name of a bias": (
        ChatRequest,
        filled(CHAT + LAST + b'], "logit_bias": {"', b"x", '🙂": 1}}'.encode()),
    ),
    "a role": (ChatRequest, filled(CHAT + b'{"role":"', b"x", '🙂"}]}'.encode())),
    "a type": (ChatRequest, filled(b'{"response_format":{"type":"', b"x", '🙂"}}'.encode())),
    "an effort": (
        ChatRequest,
        filled(CHAT + LAST + b'], "reasoning_effort": "', b"x", '🙂"}'.encode()),
    ),
    "an item's type": (ResponsesRequest, filled(ITEMS + b'{"type":"', b"x", '🙂"}]}'.encode())),
    "a model's name": (CompletionRequest, filled(b'{"model": "', b"x", '🙂"}'.encode())),
    "a tool's name": (
        ChatRequest,
        filled(
            CHAT + LAST + b'],"tools":[{"type":"function","function":{"name":"',
            b"x",
            '🙂"}}]}'.encode(),
        ),
    ),
    "arguments": (
        ChatRequest,
        filled(CALLS + CALL[:21] + b'f","arguments":"', b"a", '🙂"},"id":""}]}]}'.encode()),
    ),
    "a stop": (CompletionRequest, filled(b'{"prompt": "x", "stop": "', b"x", '🙂"}'.encode())),
    "a pattern": (CompletionRequest, filled(b'{"guided_regex": "', b"x", '🙂"}'.encode())),
    "white space": (ChatRequest, filled(CHAT, b" ", b"]}")),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_takes_a_small_multiple_of_its_bytes(name: str) -> None:
    model, body = BODIES[name]
    pieces = [body[at : at + 2**16] for at in range(0, len(body), 2**16)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def serve() -> None:
        request = Request({"type": "http", "method": "POST", "headers": []}, receive)
        with suppress(ApiError, RequestValidationError):
            value = _validated(await read(request), model)
            translate = TRANSLATED.get(model)
            if translate:
                translate(value)

    tracemalloc.start()
    try:
        asyncio.run(serve())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= FACTOR * len(body) + FIXED_BYTES
