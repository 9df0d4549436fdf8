"""`nemo-trt serve`."""

import os
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_trt.defaults import DRAIN_TIMEOUT_S, SLOTS
from nemo_trt.serve.hosts import allowed_hosts, is_loopback
from nemo_trt.serve.keys import KEYS_VARIABLE, read_keys
from nemo_trt.serve.options import ServeOptions
from nemo_trt.verdict import PASS
from nemo_trt.where import Where

from .shared_options import where_options

if TYPE_CHECKING:
    from nemo_trt.serve.lifetime import Lifetime

_DEFAULTS = {field.name: field.default for field in fields(ServeOptions)}


@click.command(epilog="Example: nemo-trt serve ./bundle --max-batch 8 --max-seq-len 4096")
@click.argument("bundle", type=click.Path(path_type=Path))
@where_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes any free port.",
)
@click.option("--model-name", help="Model name in the API; by default the checkpoint's name.")
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help=f"Number of slots, by default {SLOTS}; an engine has its own.",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(1),
    help="Maximum tokens of prompt and answer; by default the model's, as far as memory allows. "
    "An engine has its own.",
)
@click.option("--threads", type=click.IntRange(1), help="Number of compute threads; CPU only.")
@click.option(
    "--max-queue",
    type=click.IntRange(1),
    default=_DEFAULTS["max_queue"],
    show_default=True,
    help="Maximum requests waiting for a slot; further ones get 429.",
)
@click.option(
    "--prefill-tokens",
    type=click.IntRange(1),
    default=_DEFAULTS["prefill_tokens"],
    show_default=True,
    help="Maximum prompt tokens per step; fewer shorten the gaps in other answers.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULTS["request_timeout_s"],
    show_default=True,
    help="Maximum seconds per request, including its wait.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0),
    default=DRAIN_TIMEOUT_S,
    show_default=True,
    help="Maximum seconds to finish running requests after SIGTERM.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(1),
    default=_DEFAULTS["max_body_bytes"],
    show_default=True,
    help="Maximum size of a request body; larger ones get 413.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"File with one API key per line; or list them in {KEYS_VARIABLE}, with commas.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Origin whose pages may call the API, such as https://chat.example; may be repeated.",
)
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Host header to accept, in addition to loopback names; may be repeated.",
)
@click.option("--allow-unvalidated", is_flag=True, help="Serve without a passing verdict.")
@click.option(
    "--verify-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ed25519 public key (PEM) that the verdict's signature must match.",
)
@click.option("--ray", is_flag=True, help="Serve replicas with Ray on this machine.")
@click.option("--replicas", type=click.IntRange(1), help="With --ray: replicas, by default 1.")
@click.option(
    "--autoscale", metavar="MIN:MAX", help="With --ray: scale the replicas with the queue length."
)
@click.option(
    "--front-ends",
    type=click.IntRange(0),
    help="Processes for HTTP and tokenizing, besides the engine's; 0: one process for all. By "
    "default 1 on a GPU whose machine has 4 processors or more, else 0.",
)
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
    front_ends: int | None,
    log_text: bool,
) -> None:
    """Serve BUNDLE over HTTP: OpenAI's API under /v1, a chat page at /, metrics at /metrics.

    On SIGTERM or Ctrl-C, running requests are finished first. Each request is logged to stderr as
    one JSON line.
    """
    start = time.perf_counter()
    if not ray and (replicas or autoscale):
        raise click.UsageError("--replicas and --autoscale go with --ray.")
    if ray and front_ends:
        raise click.UsageError("--front-ends does not go with --ray; leave one of them out.")
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
            server=replace(options, verify_key=verify_key and verify_key.resolve()),
        )
        serve_cluster_forever(cluster, host=host, port=port, on_ready=ready)
        return

    from nemo_trt.serve.log import log_to_stderr

    log_to_stderr()
    asked = {"max_batch": max_batch, "max_seq_len": max_seq_len, "threads": threads}
    there: Any = {"host": host, "port": port, "drain_timeout_s": drain_timeout}

    def opened(lifetime: "Lifetime", address: str) -> None:
        assert lifetime.engine is not None
        facts = lifetime.engine.facts
        size = f" {facts.slots} slots of at most {facts.max_seq_len} tokens."
        name = options.model_name or lifetime.bundle.source_name
        ready(name, address, lifetime.verdict.words, size)

    if front_ends is None:  # on the CPU provider the engine itself needs the processors
        front_ends = int(where.kind != "cpu" and (os.cpu_count() or 1) >= 4)
    if front_ends:
        from nemo_trt.serve.lifetime import Lifetime
        from nemo_trt.serve.processes import serve_by_front_ends

        begun = Lifetime.begin(bundle, where, options, **asked)
        told = partial(opened, begun)
        serve_by_front_ends(begun, front_ends=front_ends, on_ready=told, **there)
    else:
        from nemo_trt.serve.http import create_app, serve_forever

        app = create_app(bundle, where, options=options, **asked)
        serve_forever(
            app, on_ready=lambda address: opened(app.state.service.lifetime, address), **there
        )


def _range(text: str | None) -> tuple[int, int] | None:
    """MIN:MAX as two numbers."""
    if text is None:
        return None
    fewest, colon, most = text.partition(":")
    if not (colon and fewest.isdecimal() and most.isdecimal()):
        raise click.UsageError(f"--autoscale must be MIN:MAX, two numbers, got {text!r}.")
    return int(fewest), int(most)
