"""Modules of ours that run in a process of their own."""

import sys


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python.

    What lies in the working directory is no module to it: by itself `python -m` looks there first,
    so that a file that somebody left there would run.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
