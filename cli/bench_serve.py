"""`nemo-trt bench-serve`."""

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_trt.errors import RequestError

if TYPE_CHECKING:
    from nemo_trt.serve.load import LoadOptions, LoadResult, Summary

KEY_VARIABLE = "NEMO_TRT_API_KEY"
_FAILED, _STOPPED = 1, 130


@click.command(
    epilog="Example: nemo-trt bench-serve http://127.0.0.1:8000 --concurrency 8 --requests 100"
)
@click.argument("url")
@click.option("--model", help="By default the first that the server lists.")
@click.option(
    "--endpoint",
    type=click.Choice(["chat", "completions"]),
    default="chat",
    show_default=True,
    help="Which of OpenAI's two.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    help="Closed loop: clients that each send when they have their answer. 8 without --rate.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Open loop: requests a second, however long the answers take.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="How an open loop's requests are spread.",
)
@click.option("--requests", type=click.IntRange(1), help="100 without --duration.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="Seconds of sending.")
@click.option(
    "--warmup",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Requests beforehand that no figure contains.",
)
@click.option(
    "--prompt-tokens",
    default="128",
    show_default=True,
    help="N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:MAX].",
)
@click.option("--output-tokens", default="64", show_default=True, help="Likewise, as max_tokens.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, dir_okay=False),
    help='JSONL: a string a line, or {"prompt" or "messages": ..., "max_tokens": N}.',
)
@click.option(
    "--shared-prefix",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Tokens that all prompts begin with, besides their own.",
)
@click.option(
    "--cancel-fraction",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of requests that hang up somewhere in their answer.",
)
@click.option("--ignore-eos", is_flag=True, help="Ask for answers of full length (an extension).")
@click.option("--extra-body", help="JSON object of fields for every request.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"File with the API key; so may {KEY_VARIABLE}.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds a request may take.",
)
@click.option("--slo-ttft", type=click.FloatRange(0, min_open=True), help="Goodput: seconds.")
@click.option(
    "--slo-itl",
    type=click.FloatRange(0, min_open=True),
    help="Goodput: seconds between a request's tokens, on average.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.json, requests.jsonl and plot.png.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="File for the report; - prints it.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="File for the plot.")
def command(
    url: str,
    out: Path | None,
    json_file: Path | None,
    plot: Path | None,
    ignore_eos: bool,
    extra_body: str | None,
    api_key_file: Path | None,
    **settings: Any,
) -> int:
    """Put load on the server at URL, whose make does not matter, and measure its answers.

    Exit code 1 when requests failed; those that got 429 were refused and did not fail. Ctrl-C
    reports what there is.
    """
    from nemo_trt.serve.load import summarise
    from nemo_trt.serve.load.report import as_text, write_folder

    from .load_table import show

    extra = _object(extra_body) | ({"ignore_eos": True} if ignore_eos else {})
    options = _options(url, extra, _key(api_key_file), settings)
    if plot or out:  # what is missing must be known before the measurement
        import matplotlib  # noqa: F401
    result = _run(options)
    summary = summarise(result)
    if str(json_file) == "-":
        click.echo(as_text(result, summary), nl=False)
    else:
        show(result, summary)
    _write(result, summary, json_file, plot)
    if out:
        write_folder(out, result, summary)
    if result.broken_off:
        return _STOPPED
    return _FAILED if summary.num_failed else 0


def _options(
    url: str, extra: dict[str, Any], key: str | None, given: dict[str, Any]
) -> "LoadOptions":
    from nemo_trt.serve.load import LoadOptions, parse_lengths

    names = {
        "requests": "num_requests",
        "duration": "duration_s",
        "warmup": "num_warmup",
        "shared_prefix": "shared_prefix_tokens",
        "timeout": "timeout_s",
        "slo_ttft": "slo_ttft_s",
        "slo_itl": "slo_itl_s",
    }
    named = {names.get(name, name): value for name, value in given.items()}
    assert named.keys() <= {field.name for field in fields(LoadOptions)}
    for name in ("prompt_tokens", "output_tokens"):
        named[name] = parse_lengths(named[name])
    if named["concurrency"] is None and named["rate"] is None:
        named["concurrency"] = 8
    if named["num_requests"] is None and named["duration_s"] is None:
        named["num_requests"] = 100
    return LoadOptions(url=url, extra_body=extra, api_key=key, **named)


def _run(options: "LoadOptions") -> "LoadResult":
    import asyncio
    import signal

    from nemo_trt.serve.load import run_load

    from .console import Bar

    async def run(bar: Bar) -> "LoadResult":
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, stop.set)
        try:
            return await run_load(options, progress=bar, stop=stop)
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    try:
        with Bar() as bar:
            return asyncio.run(run(bar))
    except asyncio.CancelledError:  # before anything was measured
        raise click.Abort from None


def _write(
    result: "LoadResult", summary: "Summary", json_file: Path | None, plot: Path | None
) -> None:
    from nemo_trt.atomic import write_text
    from nemo_trt.serve.load.plot import write_plot
    from nemo_trt.serve.load.report import as_text

    if json_file and str(json_file) != "-":
        write_text(json_file, as_text(result, summary))
    if plot:
        write_plot(plot, result, summary)


def _object(text: str | None) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RequestError(f"--extra-body must be a JSON object, got {text!r}.")
    return found


def _key(file: Path | None) -> str | None:
    key = file.read_text(encoding="utf-8") if file else os.environ.get(KEY_VARIABLE, "")
    key = key.strip()
    if file and (not key or "\n" in key):
        raise RequestError(f"{file} must hold one API key, got {len(key.splitlines())} lines.")
    return key or None
