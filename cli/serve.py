"""`nemo-trt serve`."""

import ipaddress
import logging
import os
import sys
import time
from dataclasses import fields
from pathlib import Path

import click

from nemo_trt.errors import RequestError
from nemo_trt.serve.options import ServeOptions

KEYS_VARIABLE = "NEMO_TRT_API_KEYS"
_DEFAULTS = {field.name: field.default for field in fields(ServeOptions)}


@click.command(epilog="Example: nemo-trt serve ./bundle --max-batch 8 --max-seq-len 4096")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", help="Serve this engine of the bundle, on this machine's GPU.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free."
)
@click.option("--model-name", help="What clients call it; by default the bundle's folder name.")
@click.option(
    "--max-batch", type=click.IntRange(1), default=8, show_default=True, help="Slots (no engine)."
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(1),
    help="Tokens of prompt and answer (no engine); by default the model's, as memory allows.",
)
@click.option("--threads", type=click.IntRange(1), help="Compute threads (no engine).")
@click.option(
    "--max-queue",
    type=click.IntRange(1),
    default=_DEFAULTS["max_queue"],
    show_default=True,
    help="Requests that may wait; more get 429.",
)
@click.option(
    "--prefill-tokens",
    type=click.IntRange(1),
    default=_DEFAULTS["prefill_tokens"],
    show_default=True,
    help="Prompt tokens a step; fewer keep other answers more even.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULTS["request_timeout_s"],
    show_default=True,
    help="Seconds a request may take, waiting included.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds to finish what runs after SIGTERM.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(1),
    default=_DEFAULTS["max_body_bytes"],
    show_default=True,
    help="Of a request; more get 413.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"File with an API key a line; so may {KEYS_VARIABLE}, with commas.",
)
@click.option("--allow-unvalidated", is_flag=True, help="Serve without a passing verdict.")
@click.option("--log-text", is_flag=True, help="Write prompts and answers to the log.")
def command(
    bundle: Path,
    engine: str | None,
    host: str,
    port: int,
    model_name: str | None,
    max_batch: int,
    max_seq_len: int | None,
    threads: int | None,
    max_queue: int,
    prefill_tokens: int,
    request_timeout: float,
    drain_timeout: float,
    max_body_bytes: int,
    api_key_file: Path | None,
    allow_unvalidated: bool,
    log_text: bool,
) -> None:
    """Serve BUNDLE over HTTP: OpenAI's API under /v1, a chat page at /, metrics at /metrics.

    Stops on SIGTERM or Ctrl-C after finishing what runs. One JSON line a request goes to stderr.
    """
    start = time.perf_counter()
    from nemo_trt.serve.http import create_app, serve_forever

    options = ServeOptions(
        model_name=model_name,
        api_keys=_keys(api_key_file),
        max_body_bytes=max_body_bytes,
        max_queue=max_queue,
        prefill_tokens=prefill_tokens,
        request_timeout_s=request_timeout,
        allow_unvalidated=allow_unvalidated,
        log_text=log_text,
    )
    if not options.api_keys and not _is_loopback(host):
        click.echo(
            f"Warning: {host} may be reached by others, and no API key is asked for.", err=True
        )
    log = logging.getLogger("nemo_trt.serve")
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)
    app = create_app(
        bundle,
        options=options,
        engine=engine,
        max_batch=max_batch,
        max_seq_len=max_seq_len,
        threads=threads,
    )

    def on_ready(address: str) -> None:
        service = app.state.service
        verdict = "" if service.validated else f" NOT VALIDATED: {service.verdict}."
        click.echo(
            f"Ready after {time.perf_counter() - start:.1f} s: {service.model_name} at "
            f"{address}.{verdict}",
            err=True,
        )

    serve_forever(app, host=host, port=port, drain_timeout_s=drain_timeout, on_ready=on_ready)


def _keys(file: Path | None) -> tuple[str, ...]:
    """The API keys of a file and of the environment."""
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    lines += os.environ.get(KEYS_VARIABLE, "").split(",")
    keys = tuple(line.strip() for line in lines if line.strip())
    if file and not keys:
        raise RequestError(f"{file} must hold at least one API key, a line each, got none.")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
