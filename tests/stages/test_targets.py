"""A full disk, or a folder that cannot be written, is named before the work."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt import atomic
from nemo_trt.engines.targets import target_named
from nemo_trt.engines.trt import builder
from nemo_trt.engines.trt.engine_record import BuildOptions
from nemo_trt.errors import BuildError, ExportError
from nemo_trt.export import bundle as bundle_module
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.convert import convert
from nemo_trt.export.samples import SHAPES, write_seeded
from nemo_trt.stages.export import export_checkpoint
from nemo_trt.validate import bundle_validation
from nemo_trt.validate.bundle_validation import validate_bundle

pytestmark = pytest.mark.model
OPTIONS = BuildOptions(
    target="l4", sm=89, max_seq_len=256, max_batch=2, prefill_chunk=32, max_logits=8
)


def build(bundle: Path, **files: Path) -> None:
    toolkit: Any = SimpleNamespace(name="fake", version="1", builds_without_gpu=False)
    builder.build_plans(bundle, OPTIONS, toolkit, target=target_named("l4"), **files)


def converted(to: str) -> Callable[[Path, Path, Path], None]:
    return lambda checkpoint, bundle, target: convert(open_checkpoint(checkpoint), target, to)


WRITERS: dict[str, Callable[[Path, Path, Path], object]] = {
    "sample": lambda checkpoint, bundle, target: write_seeded(target, SHAPES["nemo-tiny"]),
    **{f"convert --to {to}": converted(to) for to in ("hf", "mistral", "nemo")},
    "export": lambda checkpoint, bundle, target: export_checkpoint(checkpoint, target),
    "build": lambda checkpoint, bundle, target: build(bundle),
    "validate": lambda checkpoint, bundle, target: validate_bundle(bundle),
}


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be begun."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done")

    for module, name in (
        (atomic, "new_directory"),
        (atomic, "new_file"),
        (bundle_module, "require_finite"),
        (bundle_module, "trace_decoder"),
        (builder, "lower"),
        (bundle_validation, "sha256_file"),
        (bundle_validation, "digests_of"),
        (bundle_validation, "open_reference"),
    ):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(builder, "require_fit", lambda *_: None)  # of an fp32 bundle


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_before_the_work(
    writer: str, tiny: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statvfs = os.statvfs

    def full(path: Any) -> Any:
        found = statvfs(path)
        return SimpleNamespace(f_bavail=1, f_bfree=1, f_blocks=found.f_blocks, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises((ExportError, BuildError), match=r"must have .* GB .*got 0\.0"):
        WRITERS[writer](tiny_checkpoint, tiny.bundle, tmp_path / "target")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    writer: str, tiny: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)
    with pytest.raises(ExportError, match="must be a folder that can be written"):
        WRITERS[writer](tiny_checkpoint, tiny.bundle, tmp_path / "target")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("option", ["log_file", "timing_cache"])
def test_a_builds_other_files_are_checked_before_the_work(
    option: str, tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=f"file must be a folder .*, for {option}"):
        build(tiny.bundle, **{option: tmp_path / "file" / option})
