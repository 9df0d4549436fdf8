"""`nemo-trt export`."""

from pathlib import Path
from typing import Any

import click

from nemo_trt.precision import PRECISIONS, DType

from .shared_options import calibration_options, dequantise_option, format_option

_FP8_OPTIONS = (
    click.option(
        "--scales",
        type=click.Path(path_type=Path, exists=True),
        help="FP8: reuse the scales of this FP8 bundle or manifest.json instead of calibrating.",
    ),
    click.option(
        "--clip",
        type=click.Choice(["amax", "percentile", "mse"]),
        default="amax",
        show_default=True,
        help="FP8: range of an activation: its largest magnitude, the 99.999th percentile, or "
        "the magnitude with the least squared error.",
    ),
    click.option(
        "--fp8-weights",
        type=click.Choice(["per-tensor", "per-channel"]),
        default="per-tensor",
        show_default=True,
        help="FP8: one weight scale per merged projection, or one per output channel.",
    ),
    click.option(
        "--merge-scales",
        is_flag=True,
        help="FP8 checkpoints: use one scale for q, k and v and one for gate and up, so that "
        "engines can merge these projections; weights with another scale are rounded again.",
    ),
    click.option("--fp8-lm-head", is_flag=True, help="FP8: also quantise the output head."),
    click.option(
        "--device", default="cpu", show_default=True, help="FP8: PyTorch device to calibrate on."
    ),
)


def fp8_options(command: Any) -> Any:
    """Add the options that only FP8 reads."""
    for option in reversed(_FP8_OPTIONS):
        command = option(command)
    return command


@click.command(epilog="Example: nemo-trt export ./Mistral-Nemo-Instruct-2407 ./nemo-bf16")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice([str(precision) for precision in PRECISIONS]),
    help="Compute precision; by default that of the stored weights.",
)
@click.option(
    "--weights",
    type=click.Choice(["copy", "in-place"]),
    default="copy",
    show_default=True,
    help="Copy the weight files into BUNDLE, or use them where they are.",
)
@format_option
@dequantise_option
@click.option(
    "--lora",
    multiple=True,
    metavar="PATH[:WEIGHT]",
    help="Merge this PEFT adapter into the weights; may be repeated.",
)
@click.option("--sha256", is_flag=True, help="Record the SHA-256 of every weight file.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
@calibration_options
@fp8_options
@click.pass_context
def command(
    context: click.Context,
    /,
    checkpoint: Path,
    bundle: Path,
    precision: str | None,
    weights: str,
    format: str | None,
    dequantise: bool,
    lora: tuple[str, ...],
    sha256: bool,
    force: bool,
    as_json: bool,
    **fp8: Any,
) -> None:
    """Export CHECKPOINT to BUNDLE: an ONNX graph with KV-cache inputs beside its weights.

    Tracing allocates no weights. With --weights in-place, BUNDLE is the folder that holds the
    checkpoint's weight files, and none of them is copied. With --precision fp8, the checkpoint is
    calibrated first, one layer in memory at a time; a checkpoint with FP8 weights is not
    calibrated, and keeps its weights and scales.
    """
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.export.checkpoints.lora import Adapter
    from nemo_trt.export.quantization.stored import extra_products, merge_scales
    from nemo_trt.stages.export import Fp8Options, export_checkpoint
    from nemo_trt.stages.tokenizer import tokenizer_note

    from .console import ERR, OUT, Bar, escaped, next_step, num_bytes

    _require_fp8(context, precision, fp8)
    _say_removed(bundle, weights, force)
    with Bar() as bar:
        made = export_checkpoint(
            checkpoint,
            bundle,
            precision=precision,
            weights="in-place" if weights == "in-place" else "copy",
            format=format,
            dequantise=dequantise,
            adapters=[Adapter.parse(text) for text in lora],
            fp8=Fp8Options(**fp8) if precision == DType.FP8 else None,
            sha256=sha256,
            force=force,
            progress=bar,
        )
    if note := tokenizer_note(made):
        ERR.print(note, markup=False)
    manifest = made.manifest
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    config = manifest.config
    OUT.print(
        f"[bold]{escaped(bundle)}[/]  {config.num_layers} layers, "
        f"{config.num_parameters / 1e9:.2f} B parameters, {manifest.precision}, weights "
        f"{num_bytes(manifest.weight_bytes)} ({manifest.weights_mode})"
    )
    if "fp8" in manifest.source:
        stored = open_checkpoint(checkpoint, format, keep_fp8=True)
        made_of = merge_scales(stored) if fp8["merge_scales"] else stored
        rounded = sum(made_of.tensors[name] is not stored.tensors[name] for name in stored.fp8)
        extra = extra_products(made_of)
        OUT.print(
            f"{len(stored.fp8)} weights in FP8 as the checkpoint holds them ({stored.fp8_kind})"
            + (f", {rounded} of them rounded again to a shared scale" if rounded else "")
            + (f"; their different scales cost an engine {extra} more matmuls" if extra else "")
        )
    elif (found := manifest.quantization) and found.kl is not None:
        measured = len(found.activations)
        OUT.print(
            f"{measured - len(found.kept)} of {measured} groups of projections in FP8; all of them "
            f"would cost KL {found.kl:.2g}, at most {found.max_kl:g} is allowed"
        )
    next_step("nemo-trt", "validate", bundle)


def _say_removed(bundle: Path, weights: str, force: bool) -> None:
    """Name the engines that --force removes with the bundle."""
    from nemo_trt.export.target import require_replaceable
    from nemo_trt.manifest import ENGINES_FOLDER

    from .console import ERR

    if not force or weights == "in-place" or not bundle.is_dir():
        return
    require_replaceable(bundle, force)
    engines = bundle / ENGINES_FOLDER
    names = sorted(path.name for path in engines.iterdir()) if engines.is_dir() else []
    if names := [name for name in names if not name.startswith(".")]:
        ERR.print(f"--force removes {bundle} and its engines: {', '.join(names)}.", markup=False)


def _require_fp8(context: click.Context, precision: str | None, fp8: dict[str, Any]) -> None:
    """Refuse options that would be ignored."""
    given = _given(context, fp8)
    if given and precision != DType.FP8:
        raise click.UsageError(f"--{given[0].replace('_', '-')} needs --precision fp8.")
    others = [name for name in given if name != "scales"]
    if "scales" in given and others:
        raise click.UsageError(
            f"--scales stands for a calibration; leave --{others[0].replace('_', '-')} out."
        )


def _given(context: click.Context, options: dict[str, Any]) -> list[str]:
    """Those of the options that the command line names."""
    return [
        name
        for name in options
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
