"""What commands print: paths as they are, commands to copy, any encoding, a pipe that closes."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_trt.cli.main import run

pytestmark = pytest.mark.e2e

FOLDER = "it's [bold]here[/] [x]"
COMMAND = [sys.executable, "-m", "nemo_trt.cli.main"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose name is markup to rich and quotes to a shell, and the working directory."""
    made = tmp_path_factory.mktemp("output")
    before = Path.cwd()
    os.chdir(made)
    assert run(["sample", FOLDER, "--shape", "nemo-tiny", "--layers", "1"]) == 0
    yield made
    os.chdir(before)


def test_paths_are_printed_as_they_are_and_the_next_command_can_be_copied(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = f"{FOLDER}/bundle"
    copied = 0
    for arguments, title in (
        (["sample", FOLDER, "--shape", "nemo-tiny", "--layers", "1", "--force"], FOLDER),
        (["inspect", FOLDER, "--tensors"], FOLDER),
        (["export", FOLDER, bundle], bundle),
        (["inspect", bundle], bundle),
        (["convert", FOLDER, f"{FOLDER} 2", "--to", "mistral"], f"{FOLDER} 2"),
    ):
        assert run(arguments) == 0
        out = capsys.readouterr().out
        assert title in out
        for line in out.splitlines():
            if line.startswith("Next: "):
                words = shlex.split(line.removeprefix("Next: "))
                assert words[0] == "nemo-trt" and words[2] in (title, bundle)
                copied += 1
    assert copied >= 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_an_output_of_any_encoding_is_written(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [*COMMAND, "doctor"], capture_output=True, env=environment, check=True, timeout=300
    )
    text = done.stdout.decode(encoding)
    assert ("✓" if encoding == "utf-8" else "yes") in text


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_failure(folder: Path, more: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # as `| head -0` does
    done = subprocess.run(
        [*COMMAND, "inspect", FOLDER, "--tensors", *more],
        stdout=write, stderr=subprocess.PIPE, check=False, timeout=300,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
