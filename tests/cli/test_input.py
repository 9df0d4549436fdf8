"""What a command takes from the shell: standard input, options that exclude each other."""

import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.cli.main import run
from nemo_trt.engines.runner import Runner
from nemo_trt.export import checkpoints

pytestmark = pytest.mark.unit


class Asked(Exception):
    """A prompt, or the path of a checkpoint, that reached what a command calls."""


def ask(*arguments: Any, **_: Any) -> Any:
    raise Asked(arguments[0])


class Stub:
    def __enter__(self) -> "Stub":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    generate = staticmethod(ask)


@pytest.mark.parametrize(
    ("data", "prompt"),
    [("café\n".encode(), "café\n"), ("café".encode("latin-1"), "caf\udce9")],
    ids=["UTF-8", "no UTF-8"],
)
def test_no_byte_of_a_prompt_on_standard_input_is_changed(
    data: bytes, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer refuses what is no UTF-8; another character in its place would go unnoticed."""
    monkeypatch.setattr(Runner, "open", lambda *_, **__: Stub())
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data), encoding="utf-8"))
    with pytest.raises(Asked) as asked:
        run(["run", "b", "-"])
    assert asked.value.args == (prompt,)


@pytest.mark.parametrize("command", [["run", "b", "hi"], ["bench", "b"], ["validate", "b"]])
def test_an_engine_and_a_backend_exclude_each_other(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--engine", "l4-fp8", "--backend", "cuda"]) == 2
    assert "--engine and --backend exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--digest", "--format=hf"])
def test_of_a_folder_that_is_both_these_options_mean_the_checkpoint(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_trt.manifest.is_bundle", lambda _: True)
    monkeypatch.setattr(checkpoints, "open_checkpoint", ask)
    with pytest.raises(Asked) as asked:
        run(["inspect", str(tmp_path), option])
    assert asked.value.args == (tmp_path,)
