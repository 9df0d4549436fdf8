"""The verdict of an acceptance, from those of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .step_record import Record

Overall = Literal["pass", "incomplete", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A step in the report.

    Attributes:
        record: of this run, or of an earlier one.
        essential: whether the whole cannot pass without it.
        kept: whether it was done in an earlier run.
        why: why it was kept or done again.
    """

    record: Record
    essential: bool
    kept: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything that an acceptance found, step by step, in order.

    Attributes:
        finished: False while steps are still to come, or when it was interrupted.
        proof: the stage of which something must have passed.
    """

    lines: tuple[Line, ...]
    finished: bool
    proof: str = "validate"

    @property
    def verdict(self) -> Overall:
        """ "fail" when a step failed; "pass" when every essential step passed, a validation among
        them; else "incomplete"."""
        if self._with("fail"):
            return "fail"
        validated = any(one.stage == self.proof for one in self._with("pass"))
        missing = any(line.essential and line.record.verdict != "pass" for line in self.lines)
        return "pass" if self.finished and validated and not missing else "incomplete"

    @property
    def failed(self) -> list[Record]:
        """The steps that failed."""
        return self._with("fail")

    @property
    def skipped(self) -> list[Record]:
        """The steps that this machine cannot run."""
        return self._with("skip")

    def _with(self, verdict: str) -> list[Record]:
        return [line.record for line in self.lines if line.record.verdict == verdict]

    def of(self, stage: str) -> Sequence[Line]:
        """The steps of a stage."""
        return [line for line in self.lines if line.record.stage == stage]
