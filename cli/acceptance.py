"""`nemo-trt acceptance`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_trt.defaults import DECODE_STEPS

from .shared_options import calibration_options, gpu_option, length_options

if TYPE_CHECKING:
    from nemo_trt.acceptance import Summary

EXIT_CODES = {"pass": 0, "fail": 1, "incomplete": 3}


@click.command(epilog="Example: nemo-trt acceptance ./Mistral-Nemo-Instruct-2407 ./out --gpu h100")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@gpu_option
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["bf16", "fp8"]),
    default=("bf16",),
    show_default=True,
    help="Precision of bundle and engine; may be repeated.",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(64),
    help="The engine's tokens per row; by default 4096, or fewer if they do not fit.",
)
@click.option(
    "--max-batch", type=click.IntRange(1), default=1, show_default=True, help="The engine's rows."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Checkpoint to compare with; by default CHECKPOINT.",
)
@calibration_options
@click.option(
    "--validate-seq-len",
    type=click.IntRange(64),
    help="Longest context to validate the bundle with; by default the model's, if memory allows.",
)
@length_options
@click.option(
    "--decode-steps",
    type=click.IntRange(3),
    default=DECODE_STEPS,
    show_default=True,
    help="Decode steps to time per length.",
)
@click.option("--threads", type=click.IntRange(1), help="ONNX Runtime's compute threads.")
@click.option(
    "--smoke/--no-smoke",
    default=None,
    help="Only the smoke, a small engine in minutes; or without it. By default it runs first.",
)
@click.option(
    "--again",
    multiple=True,
    type=click.Choice(["smoke", "plan", "export", "build", "validate", "bench"]),
    help="Run this stage and all later ones again; may be repeated.",
)
def command(
    checkpoint: Path,
    folder: Path,
    precisions: tuple[str, ...],
    again: tuple[str, ...],
    smoke: bool | None,
    **options: Any,
) -> int:
    """Run every stage on CHECKPOINT for a GPU and write one report.

    Stages: doctor, smoke, plan, export, build, validate, bench. The smoke builds and runs a small
    engine in minutes. The report goes to FOLDER/report and each precision's bundle to FOLDER.
    Running the command again resumes it: steps with unchanged inputs are kept, and steps that this
    machine cannot run are skipped with a reason. Exit codes: 0 all passed, 1 a step failed, 3
    nothing failed but something was skipped.
    """
    from nemo_trt.acceptance import AcceptanceOptions, accept
    from nemo_trt.precision import DType

    from .acceptance_view import View

    with View() as view:
        summary = accept(
            AcceptanceOptions(
                checkpoint=checkpoint,
                folder=folder,
                smoke="first" if smoke is None else "only" if smoke else "none",
                precisions=tuple(DType(precision) for precision in dict.fromkeys(precisions)),
                **options,
            ),
            view,
            again,
        )
    _show(summary, folder / "report" / ("smoke.md" if smoke else "report.md"))
    return EXIT_CODES[summary.verdict]


def _show(summary: "Summary", report: Path) -> None:
    from .console import OUT

    OUT.rule("[bold]verdict[/]", align="left")
    words = {
        "pass": "[bold green]PASS[/]",
        "fail": "[bold red]FAIL[/]",
        "incomplete": "[bold yellow]INCOMPLETE[/]  nothing failed, something was skipped",
    }
    OUT.print(words[summary.verdict])
    OUT.print(f"Report: {report}", markup=False, soft_wrap=True)
