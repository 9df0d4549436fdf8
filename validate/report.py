"""What a validation found, as data; `validation.json` is its text."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from nemo_trt.coverage import Coverage
from nemo_trt.verdict import SCHEMA_VERSION, signed_text

from .explain.explanation import Explanation

Verdict = Literal["pass", "fail"]


Choice = tuple[int, float]
"""A token's id and its probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """One of a case's worst positions, by KL.

    Attributes:
        sequence, position: where it is.
        before: ids of the tokens that lead up to it, it among them.
        engine, reference: the likeliest next tokens of each.
    """

    sequence: str
    position: int
    kl: float
    before: tuple[int, ...]
    engine: tuple[Choice, ...]
    reference: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """One case: worst and mean numbers over its positions, and what it failed, in words.

    Attributes:
        positions: (sequence, position) of every compared token, in the order of `per_position`.
        per_position: metric -> one number a position.
        worst: its worst positions; the verdict's file leaves them out.
    """

    name: str
    max_abs: float
    mean_abs: float
    max_relative_l2: float
    min_cosine: float
    max_kl: float
    mean_kl: float
    top1: float
    top5: float
    failures: tuple[str, ...]
    positions: tuple[tuple[str, int], ...]
    per_position: dict[str, tuple[float, ...]]
    worst: tuple[Disagreement, ...] = ()


def broken_case(name: str, error: str) -> CaseReport:
    """The report of a case in which the engine raised an error instead of giving logits."""
    inf = math.inf
    return CaseReport(
        name=name,
        max_abs=inf,
        mean_abs=inf,
        max_relative_l2=inf,
        min_cosine=0.0,
        max_kl=inf,
        mean_kl=inf,
        top1=0.0,
        top5=0.0,
        failures=(f"the engine must give logits, got an error: {error}",),
        positions=(),
        per_position={},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A validation's verdict, and what it is based on.

    Attributes:
        bundle_id: identity of the bundle that was run.
        engine: what ran the bundle: backend, compute precision, versions.
        reference: what it was compared with: path, format, dtype, versions, weight digests.
        settings: rows, lengths and texts of this run.
        limits: the limits that were applied.
        perplexity: perplexity of "engine" and "reference" on the validation texts.
        cases: figures and failures of each case.
        failures: failures of the run as a whole.
        coverage: files, lengths and rows that the verdict covers; None without a bundle.
        unwritten: why the verdict could not be written to its file; None if it was.
        explanation: where the graph leaves the reference, if `explained` was set.
    """

    bundle_id: str
    engine: dict[str, object]
    reference: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, float]
    perplexity: dict[str, float]
    cases: tuple[CaseReport, ...]
    failures: tuple[str, ...]
    coverage: Coverage | None = None
    unwritten: str | None = None
    explanation: Explanation | None = None
    unexplained: str | None = None

    @property
    def verdict(self) -> Verdict:
        """ "pass" if no case failed and the run as a whole did not."""
        return "fail" if self.failures or any(case.failures for case in self.cases) else "pass"

    def to_json(self, private_key: bytes | None = None) -> str:
        """The text of `validation.json`. Numbers that JSON lacks stand as text ("inf", "nan").

        Args:
            private_key: PEM of an Ed25519 key that signs it.
        """
        plain = replace(
            self, explanation=None, cases=tuple(replace(one, worst=()) for one in self.cases)
        )
        data = {"schema_version": SCHEMA_VERSION, "verdict": self.verdict, **asdict(plain)}
        del data["unwritten"], data["explanation"], data["unexplained"]
        for case in data["cases"]:
            del case["worst"]
        data["coverage"] = self.coverage.to_dict() if self.coverage else None
        return signed_text(_finite(data), private_key)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
