"""Options that several commands share: where a bundle runs, and how tokens are chosen."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nemo_trt.defaults import DECODE_LENGTHS, MAX_KL, PREFILL_LENGTHS
from nemo_trt.where import Where

if TYPE_CHECKING:
    from nemo_trt.engines.sampling import SamplingParams

Command = TypeVar("Command", bound=Callable[..., Any])

_WHERE = (
    click.option("--engine", help="Run this TensorRT engine of the bundle, on this machine's GPU."),
    click.option(
        "--backend",
        type=click.Choice(["cpu", "cuda"]),
        help="Run the bundle on ONNX Runtime: cpu (the default), or cuda, which needs "
        "onnxruntime-gpu.",
    ),
)
_SESSION = (
    click.option(
        "--max-seq-len",
        type=click.IntRange(1),
        help="Maximum tokens per row; not with --engine, which has its own.",
    ),
    click.option("--threads", type=click.IntRange(1), help="Number of compute threads; CPU only."),
)
_LENGTHS = (
    click.option(
        "--prefill",
        multiple=True,
        type=click.IntRange(1),
        default=PREFILL_LENGTHS,
        show_default=True,
        help="Prompt length to measure; may be repeated.",
    ),
    click.option(
        "--decode",
        multiple=True,
        type=click.IntRange(1),
        default=DECODE_LENGTHS,
        show_default=True,
        help="Tokens in the cache when decoding is measured; may be repeated.",
    ),
)
_ENGINE = (
    click.option(
        "--max-batch", type=click.IntRange(1), default=1, show_default=True, help="Number of rows."
    ),
    click.option(
        "--attention",
        type=click.Choice(["native", "paged"]),
        default="native",
        show_default=True,
        help="native: TensorRT's own, over rows of --max-seq-len. paged: ours, over a cache in "
        "pages; for contexts that TensorRT's cannot take. Not yet run on a GPU.",
    ),
    click.option(
        "--kv-cache",
        type=click.Choice(["base", "fp16", "fp8"]),
        default="base",
        show_default=True,
        help="Dtype of keys and values. base: that of activations. fp16: attention of a BF16 or "
        "FP8 bundle computes in FP16, too. fp8, with --attention paged: in the layers that take "
        "it, with the scales of an FP8 bundle.",
    ),
)
_CALIBRATION = (
    click.option(
        "--calibration",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="FP8: calibration texts, JSON lines or one per line; by default built-in texts.",
    ),
    click.option("--samples", type=click.IntRange(1), help="FP8: use only the first N samples."),
    click.option(
        "--max-kl",
        type=click.FloatRange(0),
        default=MAX_KL,
        show_default=True,
        help="FP8: exclude projections until the expected KL divergence of the rest is at most "
        "this, in nats; 100 excludes none.",
    ),
)
_SAMPLING = (
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        default=256,
        show_default=True,
        help="Maximum tokens to generate.",
    ),
    click.option(
        "--temperature",
        type=float,
        default=0.0,
        show_default=True,
        help="Sampling temperature; 0 is greedy.",
    ),
    click.option("--top-k", type=int, default=0, help="Keep the k most likely tokens; 0: all."),
    click.option("--top-p", type=float, default=1.0, help="Nucleus sampling probability."),
    click.option(
        "--min-p",
        type=float,
        default=0.0,
        help="Keep tokens at least this fraction as likely as the most likely one.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="Penalty on tokens seen before; values above 1 reduce repetition.",
    ),
    click.option("--seed", type=int, help="Random seed, for repeatable sampling."),
    click.option("--stop", multiple=True, help="String that ends the answer; may be repeated."),
)

format_option = click.option(
    "--format", help="Checkpoint format; by default the first one whose files are found."
)
"""Adds --format, which `open_checkpoint` takes."""
gpu_option = click.option(
    "--gpu", required=True, help="Name of the GPU, such as h100; see nemo-trt plan."
)
"""Adds --gpu, the GPU that an engine is built for."""
dequantise_option = click.option("--dequantise", is_flag=True, help="Convert FP8 weights to BF16.")
"""Adds --dequantise, which `open_checkpoint` takes."""


def where_options(command: Command) -> Command:
    """Add --engine and --backend; the command gets them as one `where`."""

    @functools.wraps(command)
    def with_where(*args: Any, engine: str | None, backend: str | None, **rest: Any) -> Any:
        if engine is not None and backend is not None:
            raise click.UsageError("--engine and --backend exclude each other; leave one out.")
        where = Where("engine", engine) if engine is not None else Where.of(backend or "cpu")
        return command(*args, where=where, **rest)

    return _add(with_where, _WHERE)  # type: ignore[return-value]  # click calls it by names


def session_options(command: Command) -> Command:
    """Add --engine, --backend, --max-seq-len and --threads."""
    return where_options(_add(command, _SESSION))


def length_options(command: Command) -> Command:
    """Add --prefill and --decode, the lengths to measure."""
    return _add(command, _LENGTHS)


def engine_options(command: Command) -> Command:
    """Add --max-batch, --attention and --kv-cache, which an engine is built or planned with."""
    return _add(command, _ENGINE)


def calibration_options(command: Command) -> Command:
    """Add --calibration, --samples and --max-kl, which an FP8 export reads."""
    return _add(command, _CALIBRATION)


def sampling_options(command: Command) -> Command:
    """Add the sampling options, which `sampling_params` takes."""
    return _add(command, _SAMPLING)


def sampling_params(options: dict[str, Any]) -> "SamplingParams":
    """The `SamplingParams` of a command that has `sampling_options`."""
    from nemo_trt.engines.sampling import SamplingParams

    return SamplingParams(**options)


def _add(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
