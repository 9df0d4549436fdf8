"""`nemo-trt serve`."""

import os
import time
from dataclasses import fields
from pathlib import Path

import click

from nemo_trt.defaults import SLOTS
from nemo_trt.serve.hosts import allowed_hosts, is_loopback
from nemo_trt.serve.keys import KEYS_VARIABLE, read_keys
from nemo_trt.serve.options import ServeOptions
from nemo_trt.verdict import PASS
from nemo_trt.where import Where

from .options import where_options

_DEFAULTS = {field.name: field.default for field in fields(ServeOptions)}


@click.command(epilog="Example: nemo-trt serve ./bundle --max-batch 8 --max-seq-len 4096")
@click.argument("bundle", type=click.Path(path_type=Path))
@where_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free."
)
@click.option("--model-name", help="What clients call it; by default the checkpoint's name.")
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help=f"Slots, by default {SLOTS}; an engine has its own.",
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
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Origin whose web pages may use the API, https://chat.example; may be repeated.",
)
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Name that the Host header may have, besides loopback names; may be repeated.",
)
@click.option("--allow-unvalidated", is_flag=True, help="Serve without a passing verdict.")
@click.option(
    "--verify-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ed25519 public key (PEM) whose signature the verdict must bear.",
)
@click.option("--ray", is_flag=True, help="Serve replicas on a Ray of this machine.")
@click.option("--replicas", type=click.IntRange(1), help="With --ray; by default 1.")
@click.option("--autoscale", metavar="MIN:MAX", help="With --ray: replicas as the queue asks.")
@click.option("--log-text", is_flag=True, help="Write prompts and answers to the log.")
def command(
    bundle: Path,
    where: Where,
    host: str,
    port: int,
    model_name: str | None,
    max_batch: int | None,
    max_seq_len: int | None,
    threads: int | None,
    max_queue: int,
    prefill_tokens: int,
    request_timeout: float,
    drain_timeout: float,
    max_body_bytes: int,
    api_key_file: Path | None,
    cors_origins: tuple[str, ...],
    hosts: tuple[str, ...],
    allow_unvalidated: bool,
    verify_key: Path | None,
    ray: bool,
    replicas: int | None,
    autoscale: str | None,
    log_text: bool,
) -> None:
    """Serve BUNDLE over HTTP: OpenAI's API under /v1, a chat page at /, metrics at /metrics.

    Stops on SIGTERM or Ctrl-C after finishing what runs. One JSON line a request goes to stderr.
    """
    start = time.perf_counter()
    if not ray and (replicas or autoscale):
        raise click.UsageError("--replicas and --autoscale go with --ray.")
    if where.kind != "cpu" and threads:
        raise click.UsageError("--threads goes with --backend cpu alone; leave it out.")
    if where.kind == "engine" and (max_batch or max_seq_len):
        raise click.UsageError("--engine has its own slots and length; leave yours out.")
    options = ServeOptions(
        model_name=model_name,
        api_keys=read_keys(api_key_file, os.environ),
        max_body_bytes=max_body_bytes,
        max_queue=max_queue,
        prefill_tokens=prefill_tokens,
        request_timeout_s=request_timeout,
        allow_unvalidated=allow_unvalidated,
        verify_key=verify_key,
        cors_origins=cors_origins,
        allowed_hosts=allowed_hosts(host, hosts),
        log_text=log_text,
    )
    if not options.api_keys and not is_loopback(host):
        click.echo(
            f"Warning: {host} may be reached by others, and no API key is asked for.", err=True
        )

    def ready(name: str, address: str, verdict: str, size: str = "") -> None:
        words = "" if verdict == PASS else f" NOT VALIDATED: {verdict}."
        seconds = time.perf_counter() - start
        click.echo(f"Ready after {seconds:.1f} s: {name} at {address}.{size}{words}", err=True)

    if ray:
        from nemo_trt.serve.cluster import ClusterOptions, serve_cluster_forever

        cluster = ClusterOptions(
            bundle=bundle.resolve(),
            where=where,
            max_batch=max_batch or SLOTS,
            max_seq_len=max_seq_len,
            threads=threads,
            replicas=replicas or 1,
            autoscale=_range(autoscale),
            drain_timeout_s=drain_timeout,
            server=options,
        )
        serve_cluster_forever(cluster, host=host, port=port, on_ready=ready)
        return

    from nemo_trt.serve.http import create_app, serve_forever
    from nemo_trt.serve.http.middleware import log_to_stderr

    log_to_stderr()
    app = create_app(
        bundle,
        where,
        options=options,
        max_batch=max_batch,
        max_seq_len=max_seq_len,
        threads=threads,
    )

    def on_ready(address: str) -> None:
        service = app.state.service
        facts = service.describe()
        size = f" {facts['slots']} slots of at most {facts['max_seq_len']} tokens."
        ready(service.model_name, address, service.verdict, size)

    serve_forever(app, host=host, port=port, drain_timeout_s=drain_timeout, on_ready=on_ready)


def _range(text: str | None) -> tuple[int, int] | None:
    """MIN:MAX as two numbers."""
    if text is None:
        return None
    fewest, colon, most = text.partition(":")
    if not (colon and fewest.isdecimal() and most.isdecimal()):
        raise click.UsageError(f"--autoscale must be MIN:MAX, two numbers, got {text!r}.")
    return int(fewest), int(most)
