"""Requests that are under way, steps that were launched, and tokens that were taken of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_trt.engines.generation import Generation, Taken
from nemo_trt.engines.row_steps import Step
from nemo_trt.errors import NemoTrtError

from .drafts import PromptLookup
from .request import Output, Request, Usage


@dataclass(slots=True, kw_only=True, eq=False)
class Live:
    """A request in the queue, or in a row."""

    request_id: int
    request: Request
    prompt: list[int]
    usage: Usage
    generation: Generation
    lookup: PromptLookup | None
    row: int = -1
    arrival: float = 0.0
    pending: list[int] = field(default_factory=list)  # not in the cache yet
    decoding: bool = False
    num_scored: int = 0  # tokens of its prompt
    scored_at: int = 0  # when its prompt had its last turn
    leader: "Live | None" = None  # runs the beginning of the same prompt, which is copied then

    @property
    def scoring(self) -> bool:
        """Whether some of its prompt has to be scored yet."""
        return self.request.scores is not None and self.num_scored < len(self.request.prompt)

    @property
    def group(self) -> object:
        """Whose answers it belongs to."""
        return self if self.request.group is None else self.request.group


@dataclass(slots=True)
class Turn:
    """Tokens of one request whose meaning has not been told, or what went wrong behind them."""

    live: Live
    drafts: list[int]
    tokens: list[tuple[Taken, bool]] = field(default_factory=list)  # and whether it was drafted
    outputs: list[Output] = field(default_factory=list)  # told already
    error: NemoTrtError | None = None


@dataclass(slots=True)
class Flight:
    """A step that was launched."""

    work: Mapping[int, list[int]]
    lives: dict[int, Live]
    step: Step | None = None
    error: NemoTrtError | None = None
