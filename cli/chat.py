"""`nemo-trt chat`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_trt.where import Where

from .shared_options import sampling_options, sampling_params, session_options

if TYPE_CHECKING:
    from nemo_trt.engines.runner import Runner
    from nemo_trt.engines.sampling import SamplingParams
    from nemo_trt.engines.tokenizers import Message


@click.command(epilog='Example: nemo-trt chat ./bundle --system "Answer briefly."')
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--system", help="System prompt.")
@click.option("--message", "-m", help="Send this one message and exit.")
@sampling_options
@session_options
def command(
    bundle: Path,
    system: str | None,
    message: str | None,
    max_seq_len: int | None,
    threads: int | None,
    where: Where,
    **sampling: Any,
) -> None:
    """Chat with BUNDLE in its own chat format. An empty line or Ctrl-D ends the conversation.

    Earlier turns stay in the cache and are not recomputed.
    """
    from nemo_trt.engines.runner import Runner

    params = sampling_params(sampling)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    with Runner.open(bundle, where, max_seq_len=max_seq_len, threads=threads) as runner:
        if message is not None:
            _answer(runner, [*messages, {"role": "user", "content": message}], params)
            return
        while question := _ask():
            messages.append({"role": "user", "content": question})
            answer = _answer(runner, messages, params)
            messages.append({"role": "assistant", "content": answer})


def _ask() -> str:
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    return sys.stdin.buffer.readline().decode("utf-8", "surrogateescape").strip()


def _answer(runner: "Runner", messages: "list[Message]", params: "SamplingParams") -> str:
    pieces = []
    for event in runner.chat(messages, params):
        pieces.append(event.text)
        click.echo(event.text, nl=False)
        sys.stdout.flush()
    click.echo()
    return "".join(pieces)
