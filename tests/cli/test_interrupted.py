"""SIGTERM and --force, as a user meets them."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_trt import atomic
from nemo_trt.cli.main import run
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.e2e

CHILD = """
import signal
import sys
from nemo_trt.cli.main import main
from nemo_trt.export.samples import seeded

def wait(*_):
    print("writing", flush=True)
    sys.stdin.read()

seeded.write_stream = wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
main(["sample", sys.argv[1], "--shape", "nemo-tiny"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_cleans_up_and_says_so(number: int, code: int, tmp_path: Path) -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "t")], text=True, **pipes
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        assert [path.name for path in tmp_path.iterdir()] == [".t.partial"]
        child.send_signal(number)
        _, said = child.communicate(timeout=LIMIT_S)
    assert child.returncode == code
    assert said.endswith("Stopped.\n") and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_cut_the_cleaning_short(tmp_path: Path) -> None:
    slowly = """
import shutil
plain = shutil.rmtree
def rmtree(*arguments, **options):
    print("cleaning", flush=True)
    sys.stdin.readline()
    plain(*arguments, **options)
shutil.rmtree = rmtree
main("""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    code = slowly.join(CHILD.rsplit("main(", 1))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "t")], text=True, **pipes
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "cleaning\n"
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate("\n", timeout=LIMIT_S)
    assert child.returncode == 143 and said.endswith("Stopped.\n")
    assert not list(tmp_path.iterdir())


def test_a_run_in_another_pid_namespace_is_refused_while_one_lives(tmp_path: Path) -> None:
    """Its process has another number there, or none: only the kernel's lock tells that it lives."""
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("this machine allows no PID namespaces")
    target = tmp_path / "t"
    with atomic.new_directory(target) as folder:
        (folder / "a").write_text("living")
        code = "from nemo_trt.cli.main import main; main()"
        second = [sys.executable, "-c", code, "sample", str(target), "--shape", "nemo-tiny"]
        done = subprocess.run([*namespace, *second], capture_output=True, text=True)
        assert done.returncode == 2 and "is being written by another run" in done.stderr
    assert (target / "a").read_text() == "living"


def test_force_replaces_only_what_nemo_trt_wrote(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("config.json", "params.json", "manifest.json"):
        (mine / name).write_text(json.dumps({"name": "mine"}))
    for command in (
        ["sample", str(mine), "--shape", "nemo-tiny", "--force"],
        ["convert", str(tiny_checkpoint), str(mine), "--to", "hf", "--force"],
        ["convert", str(tiny_checkpoint), str(mine), "--to", "mistral", "--force"],
        ["convert", str(tiny_checkpoint), str(mine), "--to", "nemo", "--force"],
        ["export", str(tiny_checkpoint), str(mine), "--force"],
    ):
        assert run(command) == 2
        assert "got something else" in capsys.readouterr().err
    assert sorted(path.name for path in mine.iterdir()) == [
        "config.json",
        "manifest.json",
        "params.json",
    ]


def test_export_force_names_the_engines_that_go(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    assert run(["export", str(tiny_checkpoint), str(real)]) == 0
    (real / "engines" / "l4-bf16").mkdir(parents=True)
    capsys.readouterr()
    assert run(["export", str(tiny_checkpoint), str(link), "--force"]) == 0
    assert "--force removes" in (said := capsys.readouterr().err) and "engines: l4-bf16." in said
    assert link.is_symlink() and not (real / "engines").exists()
    assert (real / "manifest.json").is_file()
