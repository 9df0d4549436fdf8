"""`nemo-trt convert`."""

from pathlib import Path

import click

from .options import dequantise_option, format_option


@click.command(epilog="Example: nemo-trt convert ./nemo.nemo ./nemo-hf --to hf")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["hf", "mistral", "nemo"]),
    required=True,
    help="hf and mistral write a folder, nemo a .nemo archive.",
)
@format_option
@dequantise_option
@click.option("--force", is_flag=True, help="Replace an existing DEST of the same kind.")
def command(
    source: Path, dest: Path, to: str, format: str | None, dequantise: bool, force: bool
) -> None:
    """Write the checkpoint SOURCE to DEST as another container of the same model.

    Every number stays as it is: `nemo-trt inspect --digest` says the same of both.
    """
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.export.convert import convert

    from .console import OUT, Bar, escaped, next_step, num_bytes

    checkpoint = open_checkpoint(source, format, dequantise=dequantise)
    with Bar() as bar:
        convert(checkpoint, dest, to, force=force, progress=bar)
    OUT.print(f"[bold]{escaped(dest)}[/]  {to}, {num_bytes(checkpoint.num_bytes)} of weights")
    next_step("nemo-trt", "inspect", dest, "--digest")
