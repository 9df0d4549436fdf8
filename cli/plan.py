"""`nemo-trt plan`."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .shared_options import engine_options

if TYPE_CHECKING:
    from nemo_trt.engines.planned import CacheKind, Planned
    from nemo_trt.engines.planner import Budget


@click.command(epilog="Example: nemo-trt plan ./nemo-fp8 --gpu l40s --max-batch 4")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--gpu", help="Name of the GPU; by default, show every known GPU.")
@click.option(
    "--max-seq-len", type=click.IntRange(1), help="Tokens per row; by default the most that fit."
)
@click.option(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp8"]),
    help="Precision to plan for; by default that of the bundle, or of the checkpoint's weights.",
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    source: Path,
    gpu: str | None,
    max_seq_len: int | None,
    max_batch: int,
    precision: str | None,
    attention: str,
    kv_cache: "CacheKind",
    as_json: bool,
) -> None:
    """Show whether an engine of SOURCE fits a GPU, its longest contexts, and a step's lower bound.

    SOURCE is a bundle, or a checkpoint that has not been exported yet. The lower bound is that of a
    decode step's time: the bytes it reads, weights and the whole cache, divided by the GPU's memory
    bandwidth.
    """
    from nemo_trt.engines.planner import require_fit
    from nemo_trt.engines.targets import TARGETS
    from nemo_trt.stages.plan import plan_engine, planned

    model, paged = planned(source, precision), attention == "paged"
    budget_on = partial(
        plan_engine,
        model,
        max_seq_len=max_seq_len,
        max_batch=max_batch,
        paged=paged,
        kv_cache=kv_cache,
    )
    if gpu is None:
        _show_every([budget_on(name) for name in TARGETS], as_json, model)
        return
    budget = budget_on(gpu)
    if as_json:
        from .console import OUT

        OUT.out(json.dumps(_facts(budget), indent=2))
    else:
        _show(budget, paged)
    require_fit(budget, model)


def _facts(budget: "Budget") -> dict[str, Any]:
    return {
        **asdict(budget),
        "toolkits": list(budget.target.toolkits),
        "used_bytes": budget.used_bytes,
        "free_bytes": budget.free_bytes,
        "cache_tokens": budget.cache_tokens,
    }


def _show(budget: "Budget", paged: bool) -> None:
    import rich.table

    from nemo_trt.engines.planner import RESERVE_BYTES
    from nemo_trt.engines.trt.engine_record import PAGE

    from .console import OUT, num_bytes

    target = budget.target
    cache = f"{budget.max_batch} x {budget.max_seq_len} tokens"
    if paged:
        cache = f"{budget.kv_bytes // budget.kv_token_bytes} tokens in pages"
    OUT.print(
        f"[bold]{target.name}[/]  sm_{target.sm}, {target.memory_gb} GB at "
        f"{target.bandwidth_gb_s} GB/s, FP8 {'yes' if target.has_fp8 else 'no'}; compiled by "
        f"{' or '.join(target.toolkits)}"
    )
    table = rich.table.Table(
        box=None, show_header=False, title="Memory on the GPU", title_justify="left"
    )
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("weights", budget.weight_bytes),
        (f"KV cache, {cache}", budget.kv_bytes),
        (f"scratch, prefill in chunks of {budget.prefill_chunk}", budget.scratch_bytes),
        ("reserve", RESERVE_BYTES),
        ("free", budget.free_bytes),
    ):
        style = "[red]" if value < 0 else "[default]"
        sign = "-" if value < 0 else ""
        table.add_row(name, f"{style}{sign}{num_bytes(abs(value))}[/]")
    OUT.print(table)
    if not paged:
        fits = rich.table.Table(box=None, title="Longest contexts that fit", title_justify="left")
        for rows in budget.fits:
            fits.add_column(f"{rows} row{'s' * (rows > 1)}", justify="right")
        fits.add_row(*(f"{context:,}" if context else "none" for context in budget.fits.values()))
        OUT.print(fits)
    else:
        pages, longest = budget.cache_tokens // PAGE, budget.fits[budget.max_batch]
        OUT.print(
            f"A row may have up to {longest:,} tokens. There is memory for {pages:,} pages of "
            f"{PAGE} tokens, {budget.cache_tokens:,} tokens of all rows together."
        )
    steps = f"({1e3 / budget.floor_ms:.0f} steps/s)"
    if paged:
        OUT.print(
            f"A decode step takes at least {budget.weights_ms:.2f} ms with an empty cache, "
            f"{budget.floor_ms:.2f} ms with a full one {steps}."
        )
    else:
        OUT.print(
            f"A decode step takes at least {budget.floor_ms:.2f} ms {steps}: it reads the weights "
            f"in {budget.weights_ms:.2f} ms, and the whole cache, however little of it is in use."
        )
    if budget.choices:
        choices = rich.table.Table(
            box=None, title="Lower bound of a decode step by tokens per row", title_justify="left"
        )
        for tokens in budget.choices:
            choices.add_column(f"{tokens:,}", justify="right")
        choices.add_row(*(f"{bound:.2f} ms" for bound in budget.choices.values()))
        OUT.print(choices)
    if budget.fused_tokens:
        OUT.print(
            f"TensorRT fuses attention up to {budget.fused_tokens:,} tokens per row; longer "
            "contexts need --attention paged."
        )
    OUT.print(
        f"The build takes {num_bytes(budget.disk_bytes)} of disk and about "
        f"{num_bytes(budget.host_bytes)} of host memory."
    )


def _show_every(budgets: "list[Budget]", as_json: bool, model: "Planned") -> None:
    import rich.table

    from .console import OUT, num_bytes

    if as_json:
        click.echo(json.dumps([_facts(budget) for budget in budgets], indent=2))
        return
    table = rich.table.Table(box=None, header_style="bold")
    for heading in (
        "gpu", "sm", "memory", "bandwidth", "fp8", "longest context", "tokens", "decode step",
        "free",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "gpu" else "right")
    for budget in budgets:
        target = budget.target
        possible = target.supports(model.precision)
        longest = budget.fits[budget.max_batch]
        fits = possible and longest > 0
        table.add_row(
            target.name,
            str(target.sm),
            f"{target.memory_gb} GB",
            f"{target.bandwidth_gb_s} GB/s",
            "yes" if target.has_fp8 else "no",
            f"{longest:,}" if fits else "does not fit" if possible else "no FP8",
            f"{budget.max_seq_len:,}" if fits else "",
            f"{budget.floor_ms:.1f} ms" if fits else "",
            num_bytes(budget.free_bytes) if fits and budget.free_bytes >= 0 else "",
        )
    OUT.print(table)
    OUT.print("decode step: the lower bound of its time. One GPU: nemo-trt plan SOURCE --gpu NAME")
