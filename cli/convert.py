"""`nemo-trt convert`."""

from pathlib import Path

import click

from .shared_options import dequantise_option, format_option


@click.command(epilog="Example: nemo-trt convert ./nemo.nemo ./nemo-hf --to hf")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["hf", "mistral", "nemo"]),
    required=True,
    help="Format to write: hf and mistral are folders, nemo is a .nemo archive.",
)
@format_option
@dequantise_option
@click.option("--force", is_flag=True, help="Replace an existing DEST of the same kind.")
def command(
    source: Path, dest: Path, to: str, format: str | None, dequantise: bool, force: bool
) -> None:
    """Convert the checkpoint SOURCE to another format and write it to DEST.

    Weights keep their values: `nemo-trt inspect --digest` prints the same digest for both.
    """
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.export.convert import convert

    from .console import OUT, Bar, escaped, next_step, num_bytes

    checkpoint = open_checkpoint(source, format, dequantise=dequantise)
    with Bar() as bar:
        convert(checkpoint, dest, to, force=force, progress=bar)
    OUT.print(f"[bold]{escaped(dest)}[/]  {to}, {num_bytes(checkpoint.num_bytes)} of weights")
    next_step("nemo-trt", "inspect", dest, "--digest")
