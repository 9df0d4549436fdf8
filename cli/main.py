"""The `nemo-trt` command: its sub-commands load when they are called, and errors become exit codes.

Exit codes: 0 done, 1 negative verdict or a server whose engine failed, 2 usage or bad input,
3 something this machine lacks.
"""

import importlib
import io
import signal
import sys
from types import FrameType
from typing import Any

import click

from nemo_trt import __version__
from nemo_trt.errors import FaultError, MachineError, NemoTrtError
from nemo_trt.extras import remedy

from .pipes import drop, is_closed

# Command -> its line in `nemo-trt --help`; the module of the same name holds its `command`.
COMMANDS = {
    "demo": "Export, validate and chat with a small sample model.",
    "convert": "Convert a checkpoint to another format.",
    "sample": "Write a small or random checkpoint for testing.",
    "export": "Export a checkpoint to a bundle.",
    "plan": "Show whether an engine fits a GPU, and how fast it can be.",
    "build": "Compile a bundle to a TensorRT engine for a GPU.",
    "validate": "Compare a bundle or an engine with the PyTorch reference.",
    "run": "Continue a prompt.",
    "chat": "Chat with a bundle.",
    "serve": "Serve a bundle over HTTP: OpenAI-compatible API and chat page.",
    "bench": "Measure a bundle's speed and memory on this machine.",
    "acceptance": "Run every stage for a GPU and write one report.",
    "inspect": "Show the contents of a checkpoint or bundle.",
    "doctor": "Show what this machine can run and what is missing.",
}
EXIT_VERDICT, EXIT_INPUT, EXIT_MACHINE = 1, 2, 3
_MAX_MESSAGE = 4000
EXIT_TERMINATED = 128 + signal.SIGTERM


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for, so that `--help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(
            f"nemo_trt.cli.{cmd_name.replace('-', '_')}"
        ).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; where nobody reads its output to the end, leave in silence."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            if not is_closed(sys.stdout):  # a socket's, or a child's: click would exit in silence
                raise OSError(error.strerror or "Broken pipe") from error
            drop(sys.stdout)
            ctx.exit(0)
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: nemo-trt demo",
)
@click.version_option(__version__, prog_name="nemo-trt")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Export, build, validate and serve Mistral-NeMo-12B and models of its family."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every encoding has every character
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(arguments))


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: what was begun is cleaned up as after Ctrl-C."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the cleaning short
    raise _Terminated


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; one sentence on stderr for an error."""
    debug = "--debug" in arguments
    try:
        result: Any = cli.main(
            args=[argument for argument in arguments if argument != "--debug"],
            prog_name="nemo-trt",
            standalone_mode=False,
        )
    except click.exceptions.Abort as error:  # click makes it of any KeyboardInterrupt
        _say("Stopped.")
        return EXIT_TERMINATED if isinstance(error.__cause__, _Terminated) else 130
    except _Terminated:
        _say("Stopped.")
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        _say("Stopped.")
        return 130
    except click.ClickException as error:
        error.show()
        return EXIT_INPUT
    except click.exceptions.Exit as error:
        return error.exit_code
    except NemoTrtError as error:
        if debug:
            raise
        _say(f"nemo-trt: {_printable(error)}")
        if isinstance(error, FaultError):
            return EXIT_VERDICT
        return EXIT_MACHINE if isinstance(error, MachineError) else EXIT_INPUT
    except ImportError as error:
        if debug:
            raise
        _say(f"nemo-trt: {error.name or error} is not installed. {remedy(error)}")
        return EXIT_MACHINE
    except OSError as error:
        if debug:
            raise
        where = f": {error.filename}" if error.filename else ""
        _say(f"nemo-trt: {_printable(f'{error.strerror or error}{where}')}.")
        return EXIT_INPUT
    return result if isinstance(result, int) else 0


def _printable(error: object) -> str:
    """An error's text without what would steer a terminal, and of bounded length: a file that it
    names something of may be hostile."""
    text = str(error)
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _say(words: str) -> None:
    """One line on stderr; the exit code stands where nobody reads it."""
    try:
        click.echo(words, err=True)
    except BrokenPipeError:
        drop(sys.stderr)


if __name__ == "__main__":
    main()
