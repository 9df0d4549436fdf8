"""One request to the scheduler: what it asks for, and what it is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from nemo_trt.engines.generation import Constraint, TokenEvent
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import NemoTrtError

from .drafts import DraftSource
from .scoring import PromptScores

Reason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to continue and how.

    Attributes:
        prompt: token ids, not to be altered.
        deadline: when it is given up, in seconds of the scheduler's clock.
        speculate: draft from the request's own tokens; the answer is the same.
        constraint: what the answer may consist of; each request has its own.
        drafts: tokens to draft from; None: the prompt.
        scores: collects the log-probabilities of the prompt's tokens, before the first token of
            the answer comes.
        score_only: the request ends, with "length", when its prompt has been run.
        group: answers that were asked for together share one; see `Scheduler`. None: it is alone.
    """

    prompt: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    deadline: float | None = None
    speculate: bool = True
    constraint: Constraint | None = None
    drafts: DraftSource | None = None
    scores: PromptScores | None = None
    score_only: bool = False
    group: object | None = None


@dataclass(slots=True, kw_only=True)
class Usage:
    """Tokens that a request took.

    Attributes:
        cached_tokens: of the prompt, found in the cache.
        queue_s: seconds between arrival and a row; None without a row.
        preemptions: how often it gave its pages up to others, and was continued later.
        drafted_tokens, accepted_tokens: proposed by prompt lookup, and of those the model's own.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    queue_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Why a request ended; `error` with "error" alone."""

    reason: Reason
    usage: Usage
    error: NemoTrtError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """News of one request: a token, its end, or both."""

    request_id: int
    event: TokenEvent | None
    ended: Ended | None
