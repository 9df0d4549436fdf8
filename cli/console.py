"""How the command line looks: tables, progress bars with an estimate, human numbers."""

import shlex
import sys
from types import TracebackType
from typing import Literal, Self

import rich.console
import rich.markup
import rich.progress

from .pipes import drop


class Console(rich.console.Console):
    """A console whose command goes on where nobody reads it: the exit code is the command's own."""

    def on_broken_pipe(self) -> None:
        """Print no more; rich would exit with 1."""
        drop(self.file)


# A pipe has no width: tables that are kept in a file are not cut at 80 columns.
OUT = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
ERR = Console(stderr=True, highlight=False)


class Bar:
    """A `nemo_trt.progress.Progress` drawn on stderr: one line a phase, with time and estimate.

    Where stderr is no terminal, each phase is one plain line when it begins.
    """

    def __init__(self) -> None:
        self._plain = not sys.stderr.isatty()
        self._task: rich.progress.TaskID | None = None
        self._progress = rich.progress.Progress(
            rich.progress.SpinnerColumn(finished_text="[green]✓"),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[amount]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            console=ERR,
            disable=self._plain,
        )
        self._unit = "steps"

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def phase(self, name: str, total: int = 0, unit: Literal["steps", "bytes"] = "steps") -> None:
        """Finish the phase before and begin a new line."""
        self._finish()
        self._unit = unit
        if self._plain:
            ERR.print(f"{name} ...")
        self._task = self._progress.add_task(name, total=total or None, amount="")

    def advance(self, amount: int = 1) -> None:
        """Move the present line's bar."""
        if self._task is None:
            return
        self._progress.advance(self._task, amount)
        task = self._progress.tasks[-1]
        if self._unit == "bytes" and task.total:
            done = f"{num_bytes(int(task.completed))} of {num_bytes(int(task.total))}"
            self._progress.update(self._task, amount=done)

    def _finish(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[-1]
            self._progress.update(self._task, total=task.total or 1, completed=task.total or 1)


def escaped(value: object) -> str:
    """A path or another text for a line with markup: a bracket in it is no markup."""
    return rich.markup.escape(str(value))


def next_step(*words: object) -> None:
    """Print the command to run next, quoted for the shell and on one line."""
    command = shlex.join(str(word) for word in words)
    OUT.print(f"Next: {command}", markup=False, soft_wrap=True)


def mark(present: bool) -> str:
    """A check mark or a dash, in colour; words where the output's encoding has no such signs."""
    try:
        "✓–".encode(OUT.encoding)
    except (UnicodeEncodeError, LookupError):
        return "[green]yes[/]" if present else "[yellow]no[/]"
    return "[green]✓[/]" if present else "[yellow]–[/]"


def num_bytes(count: int) -> str:
    """Bytes as people read them: 24.50 GB (decimal units)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
