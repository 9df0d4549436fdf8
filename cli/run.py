"""`nemo-trt run`."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nemo_trt.where import Where

from .shared_options import sampling_options, sampling_params, session_options


@click.command(epilog='Example: nemo-trt run ./bundle "The capital of France is" --max-tokens 20')
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt")
@sampling_options
@session_options
@click.option("--logprobs", type=int, help="With --json: alternatives to list per token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per token.")
def command(
    bundle: Path,
    prompt: str,
    max_seq_len: int | None,
    threads: int | None,
    where: Where,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Continue PROMPT with BUNDLE and stream the text; "-" reads PROMPT from standard input."""
    from nemo_trt.engines.runner import Runner

    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    params = sampling_params(sampling)
    with Runner.open(bundle, where, max_seq_len=max_seq_len, threads=threads) as runner:
        start, count = time.perf_counter(), 0
        for event in runner.generate(prompt, params):
            count += 1
            if as_json:
                click.echo(json.dumps(asdict(event), ensure_ascii=False))
            else:
                click.echo(event.text, nl=False)
    if not as_json:
        click.echo()
        click.echo(
            f"[{count} tokens, {count / (time.perf_counter() - start):.1f} a second]", err=True
        )
