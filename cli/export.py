"""`nemo-trt export`."""

from pathlib import Path

import click

from nemo_trt.precision import PRECISIONS, DType


@click.command(epilog="Example: nemo-trt export ./Mistral-Nemo-Instruct-2407 ./nemo-bf16")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice([str(precision) for precision in PRECISIONS]),
    help="Compute precision; by default the one the weights are stored in.",
)
@click.option(
    "--weights",
    type=click.Choice(["copy", "in-place"]),
    default="copy",
    show_default=True,
    help="Copy the weight files, or write BUNDLE around them where they are.",
)
@click.option("--sha256", is_flag=True, help="Digest the weight files whole; reads every byte.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def command(
    checkpoint: Path,
    bundle: Path,
    precision: str | None,
    weights: str,
    sha256: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to BUNDLE: an ONNX graph with KV-cache inputs beside its weights.

    The decoder is traced without allocating a weight. With --weights in-place, BUNDLE is the folder
    that holds the checkpoint's weight files, and not a byte of them is copied.
    """
    from nemo_trt.export.bundle import export_bundle

    from .console import OUT, Bar, num_bytes

    with Bar() as bar:
        manifest = export_bundle(
            checkpoint,
            bundle,
            precision=DType(precision) if precision else None,
            weights="in-place" if weights == "in-place" else "copy",
            sha256=sha256,
            force=force,
            progress=bar,
        )
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    config = manifest.config
    OUT.print(
        f"[bold]{bundle}[/]  {config.num_layers} layers, {config.num_parameters / 1e9:.2f} B "
        f"parameters, {manifest.precision}, weights {num_bytes(manifest.weight_bytes)} "
        f"({manifest.weights_mode})"
    )
    OUT.print(f"Next: nemo-trt validate {bundle}")
