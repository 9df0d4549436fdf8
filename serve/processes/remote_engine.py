"""The front end's side: an engine whose scheduler runs in another process."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from nemo_trt.config import ModelConfig
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.errors import NemoTrtError, StateError
from nemo_trt.serve.answer import Answer
from nemo_trt.serve.drafts import DraftSource
from nemo_trt.serve.interface import Engine, EngineFacts
from nemo_trt.serve.request import Ended, Output, Request, Usage

from . import wire
from .requests import RemoteDrafts, packed_request


class RemoteEngine(Engine):
    """Sends requests to the engine's process and hands its news to answers, in one event loop.

    Args:
        tokenizer, config: of the model.
        facts, longest_token: see `Engine`.
        send: sends a message to the engine's process.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        *,
        facts: EngineFacts,
        longest_token: int,
        send: Callable[[Any], None],
    ) -> None:
        self.tokenizer, self.config = tokenizer, config
        self._facts, self._longest_token, self._send = facts, longest_token, send
        self._asked: dict[int, tuple[Answer, Request]] = {}
        self._keys: dict[Answer, int] = {}
        self._next = 0
        self._failure: NemoTrtError | None = None

    @property
    def facts(self) -> EngineFacts:
        """What does not change while it is open."""
        return self._facts

    @property
    def failure(self) -> BaseException | None:
        """What parted this process from it, or None."""
        return self._failure

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token."""
        return self._longest_token

    def draft_source(self, tokens: Sequence[int]) -> DraftSource:
        """What answers are drafted from, indexed by the engine's process."""
        return RemoteDrafts(tokens)

    def submit(self, answer: Answer, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        """See `Answers`; to be called in the event loop of the channel."""
        if self._failure is not None:
            answer.settle(self._failure)
            return
        key = self._next
        self._next += 1
        try:
            self._send(["submit", key, packed_request(request, answer.arrival)])
        except NemoTrtError as error:
            answer.settle(error)
            return
        self._asked[key] = answer, request
        self._keys[answer] = key

    def cancel(self, answer: Answer) -> None:
        """See `Answers`."""
        if (key := self._keys.get(answer)) is not None:
            self._send(["cancel", key])

    def settle(self, key: int, packed: Any) -> None:
        """The engine's process accepted a request, or refused it."""
        if key not in self._asked:  # an engine that closes ended it first
            return
        answer, _ = self._asked[key]
        if packed is not None:
            self._forget(key)
        answer.settle(wire.error_from(packed))

    def tell(self, rows: list[Any]) -> None:
        """What a step brought."""
        for row in rows:
            output = wire.output_from(row)
            answer, _ = self._asked[output.request_id]
            if output.ended is not None:
                self._forget(output.request_id)
                answer.settle(None)  # where the end came first
            answer.take(output)

    def score(self, key: int, packed: Any) -> None:
        """Scores of a prompt's tokens, which follow those that came before."""
        if key not in self._asked:  # an engine that closes ended it first
            return
        _, request = self._asked[key]
        assert request.scores is not None
        request.scores.scores.extend(wire.scores_from(packed))

    def fail(self, words: str) -> None:
        """The engine's process has gone: end every request that waits with that error."""
        self._failure = StateError(words)
        for key, (answer, request) in list(self._asked.items()):
            self._forget(key)
            answer.settle(self._failure)
            usage = Usage(prompt_tokens=len(request.prompt))
            ended = Ended(reason="error", usage=usage, error=self._failure)
            answer.take(Output(request_id=key, event=None, ended=ended))

    def _forget(self, key: int) -> None:
        answer, _ = self._asked.pop(key)
        del self._keys[answer]
