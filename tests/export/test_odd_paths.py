"""Names that UTF-8 cannot hold, and names as long as file systems allow."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import main
from nemo_trt.digest import weights_digest
from nemo_trt.export.checkpoints import open_checkpoint

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems name files in UTF-8"),
]
NAMES = {
    "no UTF-8": b"caf\xe9",
    "240 characters": b"n" * 240,
    "240 bytes of two-byte characters": "é".encode() * 120,
    "spaces and quotes": b"a 'b' \"c\" $d\nx",
}


def run(arguments: list[str]) -> int:
    """The exit code of the command line, as a shell sees it."""
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        main(arguments)
    return int(str(ended.value.code))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return os.fsdecode(NAMES[request.param])


@pytest.fixture
def checkpoint(name: str, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    (tmp_path / "from").mkdir()
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "from" / name))


def test_such_a_checkpoint_is_inspected_converted_and_exported(
    name: str, checkpoint: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run(["inspect", str(checkpoint), "--digest"]) == 0
    assert run(["convert", str(checkpoint), str(tmp_path / name), "--to", "hf"]) == 0
    made, original = open_checkpoint(tmp_path / name), open_checkpoint(checkpoint)
    assert weights_digest(made.ordered_tensors) == weights_digest(original.ordered_tensors)
    assert run(["export", str(checkpoint), str(tmp_path / name), "--force"]) == 2
    shutil.rmtree(tmp_path / name)
    readable = name.isprintable() or "\n" in name  # ONNX reads no graph from any other folder
    capsysbinary.readouterr()
    assert run(["export", str(checkpoint), str(tmp_path / name)]) == (0 if readable else 2)
    if not readable:
        assert b"must have a name in UTF-8" in capsysbinary.readouterr().err
    bundle = tmp_path / (name if readable else "bundle")
    assert readable or run(["export", str(checkpoint), str(bundle)]) == 0
    assert run(["inspect", str(bundle)]) == 0
    manifest = Bundle.open(bundle).manifest
    assert manifest.config == original.config
    assert manifest.source["path"] == str(checkpoint.resolve())


def test_what_is_wrong_there_is_said_in_one_sentence(
    name: str, checkpoint: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (checkpoint / "config.json").write_text("{")
    assert run(["inspect", str(checkpoint)]) == 2
    assert b"Traceback" not in capsysbinary.readouterr().err
