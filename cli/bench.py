"""`nemo-trt bench`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from nemo_trt.where import Where

from .options import where_options


@click.command(epilog="Example: nemo-trt bench ./bundle --prefill 128 --decode 128 --decode 4096")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prefill",
    multiple=True,
    type=click.IntRange(1),
    default=(128, 1024),
    show_default=True,
    help="Prompt length to measure; may be repeated.",
)
@click.option(
    "--decode",
    multiple=True,
    type=click.IntRange(1),
    default=(128, 1920),
    show_default=True,
    help="Cached length to decode at; may be repeated.",
)
@click.option("--steps", type=click.IntRange(2), default=32, show_default=True, help="Per length.")
@click.option("--threads", type=click.IntRange(1), help="Compute threads.")
@where_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    bundle: Path,
    prefill: tuple[int, ...],
    decode: tuple[int, ...],
    steps: int,
    threads: int | None,
    where: Where,
    as_json: bool,
) -> None:
    """Measure BUNDLE on this machine: load, prefill, decode, memory, share of copy bandwidth."""
    from nemo_trt.engines.bench import measure

    from .console import OUT, Bar, num_bytes

    with Bar() as bar:
        figures = measure(
            bundle,
            prefill_lengths=prefill,
            decode_lengths=decode,
            num_decode_steps=steps,
            threads=threads,
            where=where,
            progress=bar,
        )
    if as_json:
        click.echo(json.dumps(asdict(figures), indent=2))
        return
    import rich.table

    table = rich.table.Table(box=None, show_header=False, title=str(bundle), title_justify="left")
    table.add_row("load", f"{figures.load_s:.2f} s")
    for length, rate in figures.prefill_tokens_per_s.items():
        first = figures.time_to_first_token_s[length]
        table.add_row(f"prefill {length}", f"{rate:,.0f} tokens/s, first token {first:.3f} s")
    for length, rate in figures.decode_tokens_per_s.items():
        table.add_row(f"decode at {length}", f"{rate:.1f} tokens/s, {1000 / rate:.1f} ms a token")
    table.add_row("peak memory", num_bytes(figures.peak_rss_bytes))
    table.add_row("weights read a token", num_bytes(figures.weight_bytes_per_token))
    table.add_row("cache a token", num_bytes(figures.kv_bytes_per_token))
    table.add_row("copy bandwidth here", f"{num_bytes(int(figures.copy_bytes_per_s))}/s")
    if where.kind == "cpu":
        table.add_row("decode's share of it", f"{figures.bandwidth_share:.0%}")
    ran = f"{figures.threads or 'default'} threads" if where.kind == "cpu" else str(where)
    table.add_row("computes in", f"{figures.compute_precision}, {ran}")
    OUT.print(table)
