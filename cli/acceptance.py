"""`nemo-trt acceptance`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_trt.defaults import MAX_KL

from .options import length_options

if TYPE_CHECKING:
    from nemo_trt.acceptance import Summary

EXIT_CODES = {"pass": 0, "fail": 1, "incomplete": 3}


@click.command(epilog="Example: nemo-trt acceptance ./Mistral-Nemo-Instruct-2407 ./out --gpu h100")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--gpu", required=True, help="The GPU's name, for example h100; see nemo-trt plan.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["bf16", "fp8"]),
    default=("bf16",),
    show_default=True,
    help="Of bundle and engine; may be repeated.",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(64),
    help="Tokens a row of the engine; by default 4096, or what fits.",
)
@click.option(
    "--max-batch", type=click.IntRange(1), default=1, show_default=True, help="The engine's rows."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Checkpoint to compare with; by default CHECKPOINT.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="FP8: samples to calibrate on, JSON lines or one text a line; by default built-in.",
)
@click.option("--samples", type=click.IntRange(1), help="FP8: take only the first N samples.")
@click.option(
    "--max-kl",
    type=click.FloatRange(0),
    default=MAX_KL,
    show_default=True,
    help="FP8: products stay in BF16 until the rest costs less than this, in nats.",
)
@click.option(
    "--validate-seq-len",
    type=click.IntRange(64),
    help="Context to validate the bundle up to; by default the model's, as far as memory allows.",
)
@length_options
@click.option(
    "--decode-steps", type=click.IntRange(3), default=32, show_default=True, help="Per length."
)
@click.option("--threads", type=click.IntRange(1), help="Compute threads of ONNX Runtime.")
@click.option(
    "--again",
    multiple=True,
    type=click.Choice(["plan", "export", "build", "validate", "bench"]),
    help="Repeat this stage and those after it; may be repeated.",
)
def command(
    checkpoint: Path,
    folder: Path,
    precisions: tuple[str, ...],
    again: tuple[str, ...],
    **options: Any,
) -> int:
    """Prove CHECKPOINT for a GPU: doctor, plan, export, build, validate, bench; one report.

    All is written to FOLDER: the report to FOLDER/report, a bundle for each precision beside it.
    The same command goes on where it was stopped: what was done with the same inputs is kept, and
    what this machine cannot do is skipped with its reason. Exit code 0 when all passed, 1 when a
    step failed, 3 when nothing failed but something was skipped.
    """
    from nemo_trt.acceptance import AcceptanceOptions, accept
    from nemo_trt.precision import DType

    from .acceptance_view import View

    with View() as view:
        summary = accept(
            AcceptanceOptions(
                checkpoint=checkpoint,
                folder=folder,
                precisions=tuple(DType(precision) for precision in dict.fromkeys(precisions)),
                **options,
            ),
            view,
            again,
        )
    _show(summary, folder)
    return EXIT_CODES[summary.verdict]


def _show(summary: "Summary", folder: Path) -> None:
    from .console import OUT

    OUT.rule("[bold]verdict[/]", align="left")
    words = {
        "pass": "[bold green]PASS[/]",
        "fail": "[bold red]FAIL[/]",
        "incomplete": "[bold yellow]INCOMPLETE[/]  nothing failed, something was skipped",
    }
    OUT.print(words[summary.verdict])
    OUT.print(f"Report: {folder / 'report' / 'report.md'}", markup=False, soft_wrap=True)
