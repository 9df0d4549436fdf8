"""`nemo-trt bench`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from nemo_trt.defaults import DECODE_STEPS
from nemo_trt.where import Where

from .shared_options import length_options, where_options


@click.command(epilog="Example: nemo-trt bench ./bundle --prefill 128 --decode 128 --decode 4096")
@click.argument("bundle", type=click.Path(path_type=Path))
@length_options
@click.option(
    "--steps",
    type=click.IntRange(2),
    default=DECODE_STEPS,
    show_default=True,
    help="Decode steps to time per length.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help="Decode with 1, 2, 4, ... rows, up to this many; by default 1, or an engine's rows.",
)
@click.option("--threads", type=click.IntRange(1), help="Number of compute threads; CPU only.")
@where_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    bundle: Path,
    prefill: tuple[int, ...],
    decode: tuple[int, ...],
    steps: int,
    max_batch: int | None,
    threads: int | None,
    where: Where,
    as_json: bool,
) -> None:
    """Measure BUNDLE on this machine: load, prefill, decode, memory, share of memory bandwidth.

    Lengths that exceed the context are skipped.
    """
    from nemo_trt.engines.measure import measure

    from .console import OUT, Bar, escaped, num_bytes

    with Bar() as bar:
        found = measure(
            bundle,
            where,
            prefill_lengths=prefill,
            decode_lengths=decode,
            num_decode_steps=steps,
            threads=threads,
            max_batch=max_batch,
            progress=bar,
        )
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    import rich.table

    table = rich.table.Table(
        box=None, show_header=False, title=escaped(bundle), title_justify="left"
    )
    table.add_row("load", f"{found.load_s:.2f} s")
    for one in found.prefill:
        table.add_row(
            f"prefill {one.tokens}",
            f"{one.tokens_per_s:,.0f} tokens/s, first token {one.step_s:.3f} s",
        )
    for one in found.decode:
        rows = f", {one.rows} rows" if one.rows > 1 else ""
        share = f", {one.floor_s / one.step_s:.0%} of the bandwidth" if one.floor_s else ""
        table.add_row(
            f"decode at {one.tokens}{rows}",
            f"{one.tokens_per_s:,.1f} tokens/s, {1e3 * one.step_s:.1f} ms a step{share}",
        )
    for what, lengths in (("prefill", found.skipped_prefill), ("decode", found.skipped_decode)):
        if lengths:
            table.add_row(f"{what}, not measured", f"{', '.join(map(str, lengths))}: too long")
    table.add_row("peak memory", num_bytes(found.peak_rss_bytes))
    table.add_row("weights read a step", num_bytes(found.weight_bytes_per_step))
    table.add_row("cache a token", num_bytes(found.kv_bytes_per_token))
    bandwidth = found.bandwidth_bytes_per_s
    amount = f"{num_bytes(int(bandwidth))}/s, " if bandwidth else ""
    table.add_row("memory bandwidth", f"{amount}{found.bandwidth_source}")
    ran = f"{found.threads or 'default'} threads" if where.kind == "cpu" else str(where)
    table.add_row("computes in", f"{found.compute_precision}, {ran}")
    OUT.print(table)
