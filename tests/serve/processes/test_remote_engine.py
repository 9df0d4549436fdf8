"""An engine elsewhere: what comes in another order than usual, and what cannot be sent."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import RequestError, StateError
from nemo_trt.serve.interface import EngineFacts
from nemo_trt.serve.processes import wire
from nemo_trt.serve.processes.remote_engine import RemoteEngine
from nemo_trt.serve.request import Ended, Output, Usage

pytestmark = pytest.mark.unit

FACTS = EngineFacts(max_seq_len=64, slots=1, compute_precision="fp32", description={})


def engine(send: Callable[[Any], None]) -> RemoteEngine:
    unused: Any = None
    return RemoteEngine(unused, unused, facts=FACTS, longest_token=4, send=send)


def test_an_end_that_comes_before_the_acceptance_is_the_answers_end() -> None:
    async def ask() -> None:
        remote = engine(lambda message: None)
        answer = remote.generate([1, 2])
        asking = asyncio.create_task(answer.accepted())
        await asyncio.sleep(0)
        ended = Ended(reason="error", usage=Usage(prompt_tokens=2), error=StateError("closed"))
        remote.tell([wire.packed_output(0, Output(request_id=0, event=None, ended=ended))])
        remote.settle(0, None)
        remote.score(0, [])
        await asking
        with pytest.raises(StateError, match="closed"):
            async for _ in answer:
                pass

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_what_cannot_be_sent_is_the_requests_error() -> None:
    def full(_: Any) -> None:
        raise RequestError("too long")

    async def ask() -> None:
        with pytest.raises(RequestError, match="too long"):
            await engine(full).generate([1], SamplingParams()).accepted()

    asyncio.run(ask())


def test_after_its_process_has_gone_every_request_is_refused() -> None:
    async def ask() -> None:
        sent: list[Any] = []
        remote = engine(sent.append)
        remote.fail("It has gone.")
        with pytest.raises(StateError, match="It has gone"):
            await remote.generate([1]).accepted()
        assert sent == []
        assert isinstance(remote.failure, StateError)

    asyncio.run(ask())
