"""What the HTTP server needs of an engine, in this process or in another one."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_trt.config import ModelConfig
from nemo_trt.engines.generation import Constraint
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.tokenizers import Tokenizer

from .answer import Answer, Answers
from .drafts import DraftSource
from .request import Request
from .scoring import PromptScores

State = Literal["starting", "ready", "draining", "failed"]
"""Where a server's life stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine says of itself; nothing of it changes.

    Attributes:
        max_seq_len: most tokens of prompt and answer together.
        slots: requests that run at once.
        description: see `Session.describe`.
    """

    max_seq_len: int
    slots: int
    compute_precision: str
    description: dict[str, Any]


class Engine(Answers, ABC):
    """Answers concurrent requests.

    Attributes:
        tokenizer, config: of the model.
    """

    tokenizer: Tokenizer
    config: ModelConfig

    @property
    @abstractmethod
    def facts(self) -> EngineFacts:
        """What does not change while it is open."""

    @property
    @abstractmethod
    def failure(self) -> BaseException | None:
        """What stopped it, or None."""

    @property
    @abstractmethod
    def longest_token(self) -> int:
        """Bytes of the longest token."""

    @property
    def max_seq_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.facts.max_seq_len

    def draft_source(self, tokens: Sequence[int]) -> DraftSource:
        """What answers are drafted from: `tokens`, indexed where the engine needs it."""
        return DraftSource(tokens)

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        timeout_s: float | None = None,
        speculate: bool = True,
        drafts: DraftSource | None = None,
        scores: PromptScores | None = None,
        score_only: bool = False,
        group: object | None = None,
    ) -> Answer:
        """Continue a prompt.

        Args:
            prompt: text, which gets the BOS token, or token ids, which are used as they are.
            params: sampling parameters; `SamplingParams()` by default.
            constraint: grammar that the answer must follow.
            timeout_s: seconds after which the answer raises `DeadlineError`.
            speculate: verify drafted tokens, which is faster and gives the same answer.
            drafts: where drafted tokens come from; by default the prompt.
            scores: collects log-probabilities of the prompt's tokens.
            score_only: end after the prompt has been scored.
            group: any object. Requests of the same group share their prompt's prefill and one place
                in the queue.

        Returns:
            An async iterator over `TokenEvent`.
        """
        tokens = self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt
        return Answer(
            self,
            Request(
                prompt=tokens,
                params=params or SamplingParams(),
                deadline=None if timeout_s is None else time.monotonic() + timeout_s,
                speculate=speculate,
                constraint=constraint,
                drafts=drafts,
                scores=scores,
                score_only=score_only,
                group=group,
            ),
        )
