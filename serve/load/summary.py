"""Figures of a measurement: percentiles, rates, errors, goodput."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .record import Outcome, Record
from .run import LoadResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A distribution in seconds; percentiles between two values are interpolated."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of values, the missing left out; None where there are none."""
    found = np.array([value for value in values if value is not None], np.float64)
    if not len(found):
        return None
    p50, p90, p95, p99 = np.percentile(found, (50, 90, 95, 99)).tolist()
    return Spread(
        count=len(found),
        mean=float(found.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(found.max()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Requests that were answered within the limits."""

    slo_ttft_s: float | None
    slo_itl_s: float | None
    good: int
    share: float
    per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a measurement says. Times are in seconds and count from when a request was due.

    Attributes:
        outcomes: requests by how they ended.
        errors: failed requests by HTTP status, "no answer" where none came; 200 is an answer that
            broke off. Refusals (429) are not among them.
        rejected, retry_after: requests that got 429, and those that were told when to come again.
        duration_s: from the first due time to the last byte.
        output_tokens: of all answers, those included that were cancelled, as far as they came.
        counted_by_chunks: answers whose tokens were counted by their pieces for want of a usage.
        ttft_s, itl_s, tpot_s, latency_s, gap_s: of the requests that were answered in full. ITL
            and gaps have a value for each token and each piece, the others one for each request.
        lateness_s, loop_lag_s: of the generator itself.
    """

    outcomes: dict[str, int]
    errors: dict[str, int]
    rejected: int
    retry_after: int
    duration_s: float
    requests_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    counted_by_chunks: int
    ttft_s: Spread | None
    itl_s: Spread | None
    tpot_s: Spread | None
    latency_s: Spread | None
    gap_s: Spread | None
    lateness_s: Spread | None
    loop_lag_s: Spread | None
    cpu_share: float
    goodput: Goodput | None

    @property
    def num_failed(self) -> int:
        """Requests that failed; a refusal for want of room is no failure."""
        return sum(self.errors.values())

    def as_json(self) -> dict[str, Any]:
        """All figures; times to the microsecond."""
        found: dict[str, Any] = _rounded(asdict(self))
        return found


def summarise(result: LoadResult) -> Summary:
    """The figures of a measurement."""
    records, options = result.records, result.options
    answered = [record for record in records if record.outcome == "ok"]
    outcomes = Counter(record.outcome for record in records)
    failed = [record for record in records if record.outcome == "error"]
    duration = result.duration_s
    prompt = sum(record.prompt_tokens or 0 for record in records)
    output = sum(record.tokens for record in records)
    return Summary(
        outcomes=dict(sorted(outcomes.items())),
        errors=dict(sorted(Counter(_status(record) for record in failed).items())),
        rejected=outcomes["rejected"],
        retry_after=sum(record.retry_after_s is not None for record in records),
        duration_s=duration,
        requests_per_s=len(answered) / duration,
        prompt_tokens=prompt,
        cached_tokens=sum(record.cached_tokens or 0 for record in records),
        output_tokens=output,
        output_tokens_per_s=output / duration,
        total_tokens_per_s=(prompt + output) / duration,
        counted_by_chunks=sum(record.counted_by == "chunks" for record in answered),
        ttft_s=spread(record.ttft_s for record in answered),
        itl_s=spread(value for record in answered for value in record.itl_s),
        tpot_s=spread(record.tpot_s for record in answered),
        latency_s=spread(record.latency_s for record in answered),
        gap_s=spread(value for record in answered for value in record.gaps_s),
        lateness_s=spread(record.lateness_s for record in records),
        loop_lag_s=spread(result.loop_lag_s),
        cpu_share=result.cpu_share,
        goodput=_goodput(answered, outcomes, duration, options.slo_ttft_s, options.slo_itl_s),
    )


def _goodput(
    answered: Sequence[Record],
    outcomes: Counter[Outcome],
    duration_s: float,
    ttft: float | None,
    itl: float | None,
) -> Goodput | None:
    """Of all but what we cancelled or broke off: those are nobody's fault."""
    if ttft is None and itl is None:
        return None
    good = sum(
        (ttft is None or (record.ttft_s is not None and record.ttft_s <= ttft))
        and (itl is None or (record.tpot_s or 0.0) <= itl)
        for record in answered
    )
    counted = sum(outcomes[name] for name in ("ok", "rejected", "error"))
    return Goodput(
        slo_ttft_s=ttft,
        slo_itl_s=itl,
        good=good,
        share=good / counted if counted else 0.0,
        per_s=good / duration_s,
    )


def _status(record: Record) -> str:
    return "no answer" if record.status is None else str(record.status)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return round(value, 6) if isinstance(value, float) else value
