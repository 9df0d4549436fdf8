"""What is known of one request: when it was due, sent, answered, and how it ended."""

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["ok", "cancelled", "rejected", "error", "unfinished"]


@dataclass(slots=True, kw_only=True)
class Record:
    """One request. Times are in seconds since the measurement began.

    Attributes:
        intended_s: when it was due; latencies count from here.
        sent_s: when it was sent in fact.
        chunk_s: when each piece of the answer came; a piece that holds nothing of it is left out.
        finish_s: when the server said why the answer ended.
        end_s: when the last byte came.
        output_tokens: by the server's usage, or by the chunks, as `counted_by` says.
        cached_tokens: of the prompt, where the server tells.
        outcome: "rejected" is status 429; "cancelled" we did ourselves; "unfinished" were those
            that still ran when the measurement was broken off.
        status: of HTTP; None when no answer came.
        retry_after_s: what the server asked for, with 429 or 503.
    """

    index: int
    intended_s: float
    planned_output_tokens: int
    cancel_after: int | None = None
    sent_s: float | None = None
    chunk_s: list[float] = field(default_factory=list)
    finish_s: float | None = None
    finish_reason: str | None = None
    end_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    counted_by: Literal["usage", "chunks"] = "chunks"
    outcome: Outcome = "unfinished"
    status: int | None = None
    retry_after_s: float | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer, as far as it came."""
        return len(self.chunk_s) if self.output_tokens is None else self.output_tokens

    @property
    def lateness_s(self) -> float | None:
        """How much later than intended it was sent: the fault of the generator."""
        return None if self.sent_s is None else self.sent_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        """Time to the first piece of the answer."""
        return self.chunk_s[0] - self.intended_s if self.chunk_s else None

    @property
    def latency_s(self) -> float | None:
        """Time to the last byte of the answer."""
        return None if self.end_s is None else self.end_s - self.intended_s

    @property
    def arrivals_s(self) -> list[float]:
        """When something of the answer arrived. An answer that ends with an end token has one more
        token than pieces: it came when the server said that the answer had ended."""
        if self.finish_s is not None and self.chunk_s and self.tokens > len(self.chunk_s):
            return [*self.chunk_s, self.finish_s]
        return self.chunk_s

    @property
    def gaps_s(self) -> list[float]:
        """Pauses between pieces, whatever they hold: what a reader sees."""
        times = self.chunk_s
        return [after - before for before, after in itertools.pairwise(times)]

    @property
    def itl_s(self) -> list[float]:
        """Times between tokens. Tokens that came in one piece came 0 s apart: so many zeros as
        there are more tokens than pieces. It does not matter which piece held them."""
        times = self.arrivals_s
        gaps = [after - before for before, after in itertools.pairwise(times)]
        return gaps + [0.0] * (self.tokens - len(times)) if times else []

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; None for answers of fewer than two."""
        times = self.arrivals_s
        return (times[-1] - times[0]) / (self.tokens - 1) if times and self.tokens > 1 else None

    def as_json(self) -> dict[str, Any]:
        """All of it, and the latencies; times to the microsecond."""
        found = asdict(self)
        found |= {name: getattr(self, name) for name in ("ttft_s", "tpot_s", "latency_s")}
        return {name: _rounded(value) for name, value in found.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    return [round(one, 6) for one in value] if isinstance(value, list) else value
