"""What a client gets when replicas are lost at each moment: Ray's side is played by a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nemo-trt[ray]'")

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from nemo_trt.serve.cluster.call import Call, passed_scope
from nemo_trt.serve.cluster.forwarding import Forwarded
from nemo_trt.serve.http.errors import ApiError

pytestmark = pytest.mark.unit

CALL = Call(scope={"path": "/v1/completions"}, body=b"")
ANTHROPIC = Call(scope={"path": "/v1/messages"}, body=b"")
STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
WHOLE = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json")],
}
LOST = ActorDiedError()


def body(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@dataclass
class Script:
    """Stands for the proxy and its handle: each attempt yields messages, or fails."""

    attempts: Sequence[Sequence[Any]]
    running: int = 0
    begun: int = 0
    cancelled: int = 0
    seen: list[int] = field(default_factory=list)

    @property
    def streamed(self) -> Any:
        return self

    answer = streamed

    def remote(self, call: Call) -> Any:
        assert call in (CALL, ANTHROPIC)
        self.begun += 1
        return _Attempt(self, self.attempts[self.begun - 1])


@dataclass
class _Attempt:
    script: Script
    steps: Sequence[Any]

    async def __aiter__(self) -> AsyncIterator[Any]:
        for step in self.steps:
            self.script.seen.append(self.script.running)
            if isinstance(step, BaseException):
                raise step
            if step == "hang":
                await asyncio.Event().wait()
            yield step

    def cancel(self) -> None:
        self.script.cancelled += 1


def sent(*attempts: Sequence[Any], timeout_s: float = 60, call: Call = CALL) -> list[Any]:
    """What the client gets."""
    script, messages = Script(attempts), []

    async def send(message: Any) -> None:
        messages.append(message)

    passed = Forwarded(script, call, timeout_s=timeout_s)
    try:
        asyncio.run(passed({}, None, send))  # type: ignore[arg-type]
    finally:
        assert script.running == 0
        assert set(script.seen) == {1}
        assert script.begun == len(attempts) == script.cancelled
    return messages


def test_an_answer_passes_as_it_is() -> None:
    first, last = body(b"data: 1\n\n"), body(b"", more=False)
    assert sent([[STREAM], [first], [last]]) == [STREAM, first, last]
    whole = [WHOLE, body(b"{}", more=False)]
    assert sent([whole]) == whole


def test_a_stream_that_has_begun_ends_with_an_error_event() -> None:
    first = body(b"data: 1\n\n")
    start, passed, error = sent([[STREAM, first], LOST])
    assert (start, passed) == (STREAM, first)
    assert error["more_body"] is False
    event = error["body"].decode()
    assert event.startswith("data: ") and event.endswith("\n\n")
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "replica_lost"
    *_, error = sent([[STREAM, first], LOST], call=ANTHROPIC)
    name, event = error["body"].decode().strip().split("\n")
    assert (name, json.loads(event.removeprefix("data: "))["type"]) == ("event: error", "error")


@pytest.mark.parametrize(
    "before", [[], [[STREAM]], [[WHOLE]], [[WHOLE, body(b'{"half":')]]], ids=str
)
def test_what_has_not_begun_runs_again(before: list[Any]) -> None:
    again = [[STREAM, body(b"data: 1\n\n"), body(b"", more=False)]]
    assert sent([*before, LOST], again) == again[0]


DRAINING = b'{"error": {"code": "draining"}}'
COMMENT = body(b": waiting\n\n")


def test_a_stream_that_had_comments_alone_runs_again() -> None:
    news = [body(b"data: 1\n\n"), body(b"", more=False)]
    assert sent([[STREAM, COMMENT], LOST], [[STREAM, *news]]) == [STREAM, COMMENT, *news]


@pytest.mark.parametrize(
    ("again", "code"),
    [
        ([LOST], "replica_lost"),
        ([BackPressureError(num_queued_requests=1, max_queued_requests=1)], "queue_full"),
        ([[WHOLE | {"status": 503}], [body(DRAINING, more=False)]], "draining"),
    ],
)
def test_a_stream_that_had_comments_alone_ends_with_what_became_of_it(
    again: list[Any], code: str
) -> None:
    start, comment, error = sent([[STREAM, COMMENT], LOST], again)
    assert (start, comment, error["more_body"]) == (STREAM, COMMENT, False)
    event = error["body"].decode()
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == code


def test_a_request_that_loses_two_replicas_is_given_up() -> None:
    with pytest.raises(ApiError, match="lost") as caught:
        sent([LOST], [[WHOLE], LOST])
    assert (caught.value.status, caught.value.body["error"]["code"]) == (502, "replica_lost")


def test_a_replica_that_is_lost_behind_its_last_word_is_not_missed() -> None:
    whole = [WHOLE, body(b"{}", more=False)]
    assert sent([whole, LOST]) == whole
    stream = [STREAM, body(b"data: [DONE]\n\n"), body(b"", more=False)]
    assert sent([stream[:2], stream[2:], LOST]) == stream


def test_no_room_and_no_replica_are_told() -> None:
    with pytest.raises(ApiError) as caught:
        sent([BackPressureError(num_queued_requests=1, max_queued_requests=1)])
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "5")
    with pytest.raises(ApiError) as caught:
        sent(["hang"], timeout_s=0.01)
    assert caught.value.status == 503


def test_a_stream_that_has_begun_has_its_time_from_its_replica() -> None:
    script = Script([[[STREAM, body(b"data: 1\n\n")], "hang"]])
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def leave() -> None:
        passed = Forwarded(script, CALL, timeout_s=0.01)
        task = asyncio.create_task(passed({}, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert len(messages) == 2
    assert (script.running, script.cancelled) == (0, 1)


def test_a_replica_gets_no_key() -> None:
    given = [(b"authorization", b"Bearer k"), (b"x-api-key", b"k"), (b"accept", b"*/*")]
    passed = passed_scope({"path": "/", "headers": given}, "42")
    assert passed["headers"] == [(b"accept", b"*/*"), (b"x-request-id", b"42")]
