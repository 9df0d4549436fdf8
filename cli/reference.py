"""Writes docs/cli.md from the commands themselves: `python -m nemo_trt.cli.reference FILE`."""

import sys
from pathlib import Path

from .main import COMMANDS, cli

_HEAD = """# Command line

Generated from the commands by `make docs`; a test checks that this page is current.

Exit codes: 0 success, 1 failed verdict, 2 usage error or bad input, 3 this machine lacks something.
`--debug` before or after a command shows the traceback of an error.
"""


def reference() -> str:
    """The text of docs/cli.md."""
    parts = [_HEAD]
    group = cli.make_context("nemo-trt", [], resilient_parsing=True, terminal_width=100)
    parts.append(f"```text\n{cli.get_help(group)}\n```\n")
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None  # COMMANDS names modules of this folder
        context = command.make_context(
            name, [], parent=group, resilient_parsing=True, terminal_width=100
        )
        parts.append(f"## nemo-trt {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
