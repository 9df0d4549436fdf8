"""Runs the steps in order; what was done before is kept, and every step leaves a record."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Protocol

from nemo_trt.errors import RequestError, StateError
from nemo_trt.progress import Progress

from .acceptance_options import AcceptanceOptions
from .identity import code_words, machine_words
from .process import run_stage
from .report_folder import write_report, write_smoke
from .step import Step
from .step_record import STAGES, Record, Scalar, differences, read_record, write_record
from .steps import steps_of
from .verdict import Line, Summary


class Watcher(Progress, Protocol):
    """Is told of every step, and of the progress in it."""

    def begin(self, step: Step, why: str) -> None:
        """A step begins; `why` it is done again, "" the first time."""

    def end(self, line: Line) -> None:
        """A step was done, kept, skipped or not come to."""

    def smoke(self, page: str) -> None:
        """The smoke was done, and this is its page, as Markdown."""


def accept(options: AcceptanceOptions, watcher: Watcher, again: Sequence[str] = ()) -> Summary:
    """Run every step that was not done before, and write the report after each.

    Args:
        options: what to accept.
        watcher: is told of everything.
        again: stages to repeat, with those after them.

    Raises:
        RequestError: there is no such stage.
        OSError: the report's folder cannot be written.

    A step's failure is no exception: it stands in the summary.
    """
    for stage in again:
        if stage not in STAGES:
            raise RequestError(f"--again must name one of {', '.join(STAGES)}, got {stage}.")
    options.report_folder.mkdir(parents=True, exist_ok=True)
    chain = _Chain(options, watcher, min(map(STAGES.index, again), default=len(STAGES)))
    steps = steps_of(options)
    try:
        smoke = [step for step in steps if step.stage == "smoke"]
        for step in steps:
            chain.one(step)
            chain.report(finished=step is steps[-1])
            if step in smoke[-1:]:
                chain.smoke()
    except BaseException:
        chain.report(finished=False)
        raise
    return chain.summary(finished=True)


class _Chain:
    """The run: its lines so far."""

    def __init__(self, options: AcceptanceOptions, watcher: Watcher, again_from: int) -> None:
        self._options, self._watcher, self._again_from = options, watcher, again_from
        self._lines: dict[str, Line] = {}
        self._machine, self._code = machine_words(), code_words()

    def summary(self, *, finished: bool) -> Summary:
        """What was found so far."""
        return Summary(
            lines=tuple(self._lines.values()),
            finished=finished,
            proof="smoke" if self._options.smoke == "only" else "validate",
        )

    def report(self, *, finished: bool) -> None:
        """Write it. A smoke alone leaves the report of the whole as it is."""
        if self._options.smoke != "only":
            write_report(self._options, self.summary(finished=finished))

    def smoke(self) -> None:
        """Write the smoke's page, and show it."""
        self._watcher.smoke(write_smoke(self._options, self.summary(finished=False)))

    def one(self, step: Step) -> None:
        """Keep, do, skip or leave one step."""
        line = self._outcome(step)
        self._lines[step.name] = line
        self._watcher.end(line)

    def _outcome(self, step: Step) -> Line:
        for name in step.needs:
            needed = self._lines[name].record
            if needed.verdict != "pass":
                skipped = needed.verdict == "skip"
                words = f"{needed.stage} {needed.subject} {_PAST[needed.verdict]}"
                record = self._blank(step)
                record = replace(record, verdict="skip" if skipped else "not run", reason=words)
                return self._written(step, record)
        for name in step.unless_failed:
            if name in self._lines and self._lines[name].record.verdict == "fail":
                words = f"smoke {self._lines[name].record.subject} failed"
                return self._written(
                    step, replace(self._blank(step), verdict="not run", reason=words)
                )
        inputs = self._inputs(step)
        before, why = self._before(step, inputs)
        if before and not why:
            return Line(record=before, essential=step.essential, kept=True, why=_done(before))
        self._watcher.begin(step, why)
        started, start = datetime.now(UTC), perf_counter()
        log = self._options.report_folder / "logs" / f"{step.name}.log"
        ended = run_stage(step.stage, step.arguments, log, self._watcher)
        if before and ended.verdict == "skip":
            why = f"{_done(before)}; it cannot be repeated here: {ended.reason}"
            return Line(record=before, essential=step.essential, kept=True, why=why)
        record = replace(
            self._blank(step),
            verdict=ended.verdict,
            reason=ended.reason,
            inputs=inputs,
            environment=step.environment,
            product=ended.product,
            facts=ended.facts,
            started_at=started.isoformat(timespec="seconds"),
            seconds=round(perf_counter() - start, 3),
            peak_rss_bytes=ended.peak_rss_bytes,
        )
        return self._written(step, record, why)

    def _inputs(self, step: Step) -> dict[str, Scalar]:
        """All that the outcome depends on, with what the needed steps made."""
        made = {
            name: value
            for needed in step.needs
            for name, value in self._lines[needed].record.product.items()
        }
        return {**step.inputs, **made}

    def _before(self, step: Step, inputs: dict[str, Scalar]) -> tuple[Record | None, str]:
        """An earlier outcome that still counts, if any, and why it should be had anew, if so."""
        try:
            record = read_record(self._options.report_folder, step.name)
        except StateError as error:
            return None, str(error)
        if record is None or not step.keep:
            return None, ""
        if record.verdict != "pass":
            return None, f"the last time, it {_PAST[record.verdict]}"
        if changed := differences(record.inputs, inputs):
            return None, _some(changed)
        if gone := step.gone(record):
            return None, gone
        if STAGES.index(step.stage) >= self._again_from:
            return record, "asked for with --again"
        return record, _some(differences(record.environment, step.environment))

    def _blank(self, step: Step) -> Record:
        return Record(
            step=step.name,
            stage=step.stage,
            subject=step.subject,
            verdict="not run",
            machine=self._machine,
            code=self._code,
        )

    def _written(self, step: Step, record: Record, why: str = "") -> Line:
        write_record(self._options.report_folder, record)
        return Line(record=record, essential=step.essential, why=why)


_PAST = {"pass": "passed", "fail": "failed", "skip": "was skipped", "not run": "was not run"}


def _done(record: Record) -> str:
    return f"done before ({record.started_at[:10]}), kept"


def _some(changes: Sequence[str]) -> str:
    """Three of them, and how many more."""
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return "; ".join(changes[:3]) + more
