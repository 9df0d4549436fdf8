"""`validate` loses no verdict, signs on request, and says which command makes one that counts."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from nemo_trt import atomic
from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import run
from nemo_trt.errors import BundleError, MachineError
from nemo_trt.manifest import MANIFEST_FILE, VALIDATION_FILE
from nemo_trt.serve.approval import require_verdict
from nemo_trt.serve.options import ServeOptions
from nemo_trt.verdict import read_verdict
from nemo_trt.where import Where
from tests.permissions import bound_by_permissions

pytestmark = pytest.mark.model

Output = pytest.CaptureFixture[str]
SHORT = ["--max-seq-len", "128", "--max-batch", "3"]


@pytest.fixture
def bundle(tiny: Any, tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    shutil.copytree(tiny.bundle, target)
    return target


def test_a_verdict_covers_what_ran(bundle: Path) -> None:
    assert run(["validate", str(bundle), *SHORT]) == 0
    verdict = read_verdict(Bundle.open(bundle))
    assert verdict.passed and verdict.coverage
    covered = verdict.coverage
    assert (covered.max_seq_len, covered.max_batch) == (128, 3)
    assert set(covered.digests) == {"manifest.json", "model.onnx", "weights/model.safetensors"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_verdict_that_cannot_be_written_is_printed_and_given_as_json(
    number: int, bundle: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = atomic.write_text

    def full(target: Path, text: str) -> None:
        if target.name == VALIDATION_FILE:
            raise OSError(number, os.strerror(number))
        write(target, text)

    monkeypatch.setattr(atomic, "write_text", full)
    report = tmp_path / "report.json"
    assert run(["validate", str(bundle), *SHORT, "--json", str(report)]) == 0
    said = capsys.readouterr()
    assert "PASS" in said.out and "Every position" not in said.out
    assert os.strerror(number) in said.err and len(said.err.strip().splitlines()[-1]) < 300
    assert json.loads(report.read_text())["verdict"] == "pass"
    assert not (bundle / VALIDATION_FILE).exists()


def test_a_read_only_folder_loses_no_verdict(
    bundle: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must only have a place to go to; without one, see tests/stages/test_targets.py."""
    report = tmp_path / "report.json"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != bundle and access(path, mode))
    bundle.chmod(0o555)
    try:
        with bound_by_permissions():
            assert run(["validate", str(bundle), *SHORT, "--json", str(report)]) == 0
    finally:
        bundle.chmod(0o755)
    said = capsys.readouterr()
    assert "PASS" in said.out and "Permission denied" in said.err
    assert json.loads(report.read_text())["verdict"] == "pass"
    assert not [one for one in bundle.iterdir() if VALIDATION_FILE in one.name]


def test_what_an_explanation_needs_is_asked_for_before_the_work(
    bundle: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    assert run(["validate", str(bundle), *SHORT, "--explain"]) == 3
    assert "polygraphy" in capsys.readouterr().err
    assert not (bundle / VALIDATION_FILE).exists()


def test_an_explanation_that_fails_does_not_hide_the_verdict(
    bundle: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo_trt.validate.explain.runners import OnCpu

    def fails(*_: Any) -> Any:
        raise MachineError("ONNX Runtime failed in a piece of the graph: no memory")

    monkeypatch.setattr(OnCpu, "run", fails)
    report = tmp_path / "new" / "report.json"
    asked = ["validate", str(bundle), *SHORT, "--explain", "--json", str(report)]
    assert run([*asked, "--repro", str(tmp_path / "repro")]) == 0
    said = capsys.readouterr()
    assert "PASS" in said.out and "Not explained: ONNX Runtime failed" in said.err
    assert json.loads(report.read_text())["verdict"] == "pass"
    assert not (tmp_path / "repro").exists() and read_verdict(Bundle.open(bundle)).passed


@pytest.mark.parametrize("option", ["--json", "--report", "--repro"])
def test_a_place_that_cannot_be_written_is_named_before_the_work(
    option: str, bundle: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: Path(path).name != "shut")
    (tmp_path / "shut").mkdir()
    asked = ["validate", str(bundle), *SHORT, "--explain", option, str(tmp_path / "shut" / "it")]
    assert run(asked) == 2
    assert "shut must be a folder that can be written, for it" in capsys.readouterr().err
    assert not (bundle / VALIDATION_FILE).exists()


def test_a_place_that_was_shut_meanwhile_does_not_hide_the_verdict(
    bundle: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: True)
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    asked = ["validate", str(bundle), *SHORT, "--explain", "--json", str(shut / "report.json")]
    with bound_by_permissions():
        assert run([*asked, "--repro", str(shut / "repro")]) == 0
    said = capsys.readouterr()
    words = " ".join(said.err.split())
    assert "PASS" in said.out and "repro was not written" in words
    assert "report.json was not written" in words
    assert read_verdict(Bundle.open(bundle)).passed


def test_a_bundle_altered_while_it_is_judged_gets_no_verdict(
    bundle: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo_trt.validate import bundle_validation as module

    true = module.validate

    def alters(*arguments: Any, **named: Any) -> Any:
        report = true(*arguments, **named)
        manifest = bundle / MANIFEST_FILE
        manifest.write_text(manifest.read_text() + "\n")
        return report

    monkeypatch.setattr(module, "validate", alters)
    assert run(["validate", str(bundle), *SHORT]) == 0
    assert "altered while it was judged" in " ".join(capsys.readouterr().err.split())
    assert not (bundle / VALIDATION_FILE).exists()


def test_a_sha256_that_the_export_stated_is_compared(bundle: Path, capsys: Output) -> None:
    data = json.loads((bundle / MANIFEST_FILE).read_text())
    data["weights"][0]["sha256"] = "0" * 64
    (bundle / MANIFEST_FILE).write_text(json.dumps(data))
    assert run(["validate", str(bundle), *SHORT]) == 2
    assert "sha256 that the manifest states" in " ".join(capsys.readouterr().err.split())


def test_a_signing_key_is_checked_before_the_work(
    bundle: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo_trt.validate import bundle_validation as module

    pem = tmp_path / "key.pem"
    key = ed25519.Ed25519PrivateKey.generate()
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    assert run(["validate", str(bundle), *SHORT, "--sign-key", str(pem)]) == 0
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert read_verdict(Bundle.open(bundle), public_key=public).passed

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("worked before it looked at the key")

    monkeypatch.setattr(module, "validate", never)
    pem.write_bytes(public)
    capsys.readouterr()
    assert run(["validate", str(bundle), *SHORT, "--sign-key", str(pem)]) == 2
    assert "signing key must be" in capsys.readouterr().err


def write_engine(bundle: Path, name: str) -> Path:
    """An engine's folder whose record no verdict question looks into."""
    folder = bundle / "engines" / name
    folder.mkdir(parents=True)
    (folder / "engine.json").write_text("{}")
    return folder


def test_an_engine_needs_a_verdict_of_its_own_and_the_bundles(bundle: Path, vouch: Any) -> None:
    folder, engine = write_engine(bundle, "l40s-bf16"), Where.of("l40s-bf16")
    opened = Bundle.open(bundle)

    def refused(words: str) -> None:
        with pytest.raises(BundleError, match=words):
            require_verdict(opened, engine, ServeOptions())

    own = vouch(bundle)
    refused(f"nemo-trt validate {bundle} --engine l40s-bf16, or")  # case 21
    vouch(bundle, "l40s-bf16", compute_precision="bf16")
    assert require_verdict(opened, engine, ServeOptions()).passed
    own.unlink()
    refused(f"own verdict on the CPU is 'none yet.*Run nemo-trt validate {bundle}, or")
    vouch(bundle, failures=("perplexity",))
    refused("own verdict on the CPU is 'fail'")
    vouch(bundle)
    (folder / "engine.json").write_text('{"plans": []}')
    refused("engines/l40s-bf16/engine.json was altered after it was judged")
