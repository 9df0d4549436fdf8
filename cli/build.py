"""`nemo-trt build`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_trt.defaults import ENGINE_SEQ_LEN

from .shared_options import engine_options, gpu_option

if TYPE_CHECKING:
    from nemo_trt.engines.trt.engine_record import EngineRecord


@click.command(epilog="Example: nemo-trt build ./nemo-fp8 --gpu l40s --max-seq-len 8192")
@click.argument("bundle", type=click.Path(path_type=Path))
@gpu_option
@click.option(
    "--max-seq-len",
    type=click.IntRange(16),
    help=f"Tokens per row; by default {ENGINE_SEQ_LEN}, or fewer if they do not fit.",
)
@click.option(
    "--prefill-chunk",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Maximum tokens of one row per prefill step.",
)
@click.option(
    "--toolchain",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
    help="tensorrt needs the GPU in this machine; tensorrt-rtx does not, but cannot compile for "
    "sm_90 and sm_100.",
)
@click.option(
    "--opt-level", type=click.IntRange(0, 5), help="TensorRT's builder optimisation level."
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="tensorrt: file to load kernel timings from, if it exists, and to save them to.",
)
@click.option(
    "--single-plan/--separate-plans",
    default=True,
    show_default=True,
    help="Put prefill and decode into one plan, which holds the weights once, or into two.",
)
@click.option(
    "--allow-unfused",
    is_flag=True,
    help="Allow contexts that are too long for fused attention; slower.",
)
@engine_options
@click.option(
    "--page",
    type=click.Choice([16, 32, 64, 128]),
    default=64,
    show_default=True,
    help="Tokens of a page, with --attention paged.",
)
@click.option(
    "--strip",
    is_flag=True,
    help="Leave the weights out of the plan, which then takes megabytes, and a fraction of the "
    "time to compile. The engine reads them from the bundle when it is opened. Not yet run on a "
    "GPU.",
)
@click.option(
    "--log",
    "log_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for TensorRT's verbose log.",
)
@click.option("--json", "as_json", is_flag=True, help="Print engine.json.")
def command(bundle: Path, as_json: bool, **options: Any) -> None:
    """Compile BUNDLE for a GPU into BUNDLE/engines/GPU-PRECISION.

    An engine of the same bundle, options and TensorRT is kept, with its verdict: a second build
    says so and does nothing. TensorRT does not promise equal plans for equal inputs. The build
    checks for what TensorRT would silently get wrong, and fails if it finds any.
    """
    from nemo_trt.engines.trt.build import build_engine

    from .console import Bar, next_step

    with Bar() as bar:
        record, built = build_engine(bundle, progress=bar, **options)
    if as_json:
        click.echo(record.to_json(), nl=False)
        return
    show(bundle, record, built)
    next_step("nemo-trt", "validate", bundle, "--engine", record.name)


def show(bundle: Path, record: "EngineRecord", built: bool) -> None:
    """Print what an engine is."""
    from .console import OUT, escaped, num_bytes

    options = record.options
    folder = bundle / "engines" / record.name
    OUT.print(
        f"[bold]{escaped(folder)}[/]  {record.toolkit} {record.toolkit_version}, "
        f"sm_{options.sm}, {record.precision}, {options.max_batch} x {options.max_seq_len} tokens"
    )
    where = "in the bundle" if options.strip else "in it"
    for plan in record.plans:
        OUT.print(
            f"{plan.file}: {num_bytes(plan.num_bytes)}, weights {num_bytes(record.weight_bytes)} "
            f"{where}"
        )
        for profile in plan.profiles:
            OUT.print(
                f"  {profile}: {plan.launches_per_layer[profile]:g} kernels a layer, scratch "
                f"{num_bytes(plan.scratch_bytes[profile])}"
            )
    if built:
        OUT.print(f"built in {record.build_s:g} s, peak {num_bytes(record.peak_host_bytes)}")
    else:
        OUT.print("Nothing to do: bundle, options and TensorRT are those of this engine.")
