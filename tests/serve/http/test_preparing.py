"""What a request needs before it runs costs bounded time, once, and nobody else's."""

import asyncio
import threading
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt.errors import QueueFullError, RequestError
from nemo_trt.serve.cancellation import Cancellation
from nemo_trt.serve.drafts import DraftSource, PromptLookup
from nemo_trt.serve.http.errors import ApiError
from nemo_trt.serve.http.logprobs import require_few
from nemo_trt.serve.http.message_schema import UserMessage
from nemo_trt.serve.http.prompts import conversation, drafts, encoded, require_room
from nemo_trt.serve.http.schema import Prediction
from nemo_trt.serve.workers import Workers
from tests.waiting import until

pytestmark = pytest.mark.unit


class Letters:
    """A token for four letters or fewer, up to a space; notes what it was given."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def encode(self, text: str, *, bos: bool) -> list[int]:
        if "\0" in text:
            raise RequestError("prompt must be text that can be tokenized, got: given up")
        self.seen.append(len(text))
        return [1] * sum(-(-len(word) // 4) for word in text.split(" "))


def engine(limit: int) -> Any:
    return SimpleNamespace(
        tokenizer=Letters(), max_seq_len=limit, longest_token=20, draft_source=DraftSource
    )


def test_more_than_any_context_holds_is_refused_untokenized() -> None:
    small = engine(100)
    with pytest.raises(ApiError, match=r"^This model's maximum .* has 2001 characters") as caught:
        require_room(small, ["x" * 1000, "y" * 1001], "messages")
    assert caught.value.body["error"]["param"] == "messages"
    assert caught.value.body["error"]["code"] == "context_length_exceeded"
    assert small.tokenizer.seen == []


def test_more_messages_than_the_context_has_tokens_are_refused_unformatted() -> None:
    small = engine(100)  # its tokenizer has no format: looking for one would be another error
    messages = [UserMessage(role="user", content="x")] * 101
    with pytest.raises(ApiError, match=r"^This model's maximum .* you sent 101 messages"):
        conversation(small, messages)
    assert small.tokenizer.seen == []


def test_what_may_be_too_long_is_tokenized_as_far_as_it_takes_to_know() -> None:
    large = engine(1000)
    with pytest.raises(ApiError, match="resulted in more than 2000 tokens"):
        require_room(large, ["ab " * 6000], "prompt")
    assert sum(large.tokenizer.seen) == 8000  # of 18,000
    require_room(large, [" " * 100 + "abcd" * 2000], "prompt")  # 2,000 and some: not sure
    require_room(engine(1000), ["ab " * 2000], "prompt")


def test_what_is_short_is_tokenized_once() -> None:
    large = engine(1000)
    require_room(large, ["ab " * 2000], "prompt")
    assert large.tokenizer.seen == []


def test_nothing_more_is_tokenized_for_a_client_that_has_left() -> None:
    cancellation, large = Cancellation(), engine(1000)

    class Leaving(Letters):
        def encode(self, text: str, *, bos: bool) -> list[int]:
            cancellation.cancel()
            return super().encode(text, bos=bos)

    large.tokenizer = Leaving()
    with pytest.raises(CancelledError):
        cancellation.run(require_room, large, [" " * 16_001], "prompt")
    assert large.tokenizer.seen == [8000]


def test_what_the_tokenizer_gives_up_is_the_clients() -> None:
    with pytest.raises(ApiError, match="can be tokenized, got: given up") as caught:
        encoded(engine(9), "\0", "messages", bos=True)
    assert (caught.value.status, caught.value.body["error"]["param"]) == (400, "messages")


def test_a_prediction_is_cut_to_what_an_answer_holds() -> None:
    small = engine(10)
    prediction = Prediction(type="content", content="abcd" * 10**6)
    source = drafts(small, [7, 8], prediction)
    assert list(source.tokens) == [1] * 10 + [7, 8]
    assert small.tokenizer.seen == [80]


def test_answers_share_what_they_are_drafted_from_and_nothing_else() -> None:
    source = DraftSource([1, 2, 3, 4, 5, 1, 2, 3])
    one, other = PromptLookup(source), PromptLookup(source)
    for token in (9, 1, 2, 3):
        one.push(token)
    assert one.draft(2) == [9, 1]
    assert other.draft(2) == [4, 5]


def test_log_probabilities_of_a_prompt_are_few_enough_to_tell() -> None:
    require_few(131_072, 0, "prompt_logprobs")
    require_few(6000, 20, "prompt_logprobs")
    with pytest.raises(ApiError, match="prompt_logprobs must be below 13 for a prompt of 10000"):
        require_few(10_000, 13, "prompt_logprobs")


def test_a_call_that_nobody_waits_for_any_more_is_not_made() -> None:
    go, calls = threading.Event(), []

    async def run() -> None:
        workers = Workers("test", threads=1, max_waiting=2)
        first = asyncio.create_task(workers.run(go.wait, 60))
        left, last = (asyncio.create_task(workers.run(calls.append, at)) for at in (1, 2))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="3 requests"):
            await workers.run(calls.append, 3)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        go.set()
        assert await first
        await last
        await workers.run(calls.append, 4)  # whoever left has left room
        workers.close()

    asyncio.run(run())
    assert calls == [2, 4]
    until(lambda: not any(t.name.startswith("nemo-trt test") for t in threading.enumerate()))
