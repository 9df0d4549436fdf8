"""How an acceptance looks while it runs: a rule a stage, a line a step."""

from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from rich.markdown import Markdown

from .console import OUT, Bar, escaped

if TYPE_CHECKING:
    from nemo_trt.acceptance.step import Step
    from nemo_trt.acceptance.verdict import Line

_MARKS = {
    "pass": "[green]pass[/]",
    "fail": "[red]FAIL[/]",
    "skip": "[yellow]skipped[/]",
    "not run": "[yellow]not run[/]",
}


class View:
    """A `nemo_trt.acceptance.Watcher` that prints."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(kind, error, trace)

    def begin(self, step: "Step", why: str) -> None:
        """A step begins: its progress is drawn on stderr."""
        self._head(step.stage)
        again = f"  [dim]again: {escaped(why)}[/]" if why else ""
        if again:
            OUT.print(f"{escaped(step.subject)}{again}")
        self._bar = Bar()
        self._bar.__enter__()

    def end(self, line: "Line") -> None:
        """A step's outcome, in one line."""
        self._close(None, None, None)
        record = line.record
        self._head(record.stage)
        why = record.reason or (line.why if line.kept else "")
        taken = f"{record.seconds:8.1f} s" if record.started_at and not line.kept else " " * 10
        OUT.print(
            f"{_MARKS[record.verdict]:8} {taken}  {escaped(record.subject)}"
            + f"  [dim]{escaped(why)}[/]" * bool(why)
        )

    def smoke(self, page: str) -> None:
        """The page of a smoke, as it looks in a browser."""
        OUT.print(Markdown(page))

    def phase(self, name: str, total: int = 0, unit: Literal["steps", "bytes"] = "steps") -> None:
        """See `nemo_trt.progress.Progress`."""
        if self._bar:
            self._bar.phase(name, total, unit)

    def advance(self, amount: int = 1) -> None:
        """See `nemo_trt.progress.Progress`."""
        if self._bar:
            self._bar.advance(amount)

    def _head(self, stage: str) -> None:
        if stage != self._stage:
            self._stage = stage
            OUT.rule(f"[bold]{stage}[/]", align="left")

    def _close(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.__exit__(kind, error, trace)
            self._bar = None
