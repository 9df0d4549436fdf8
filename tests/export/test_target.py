"""What stops an export stops it before its work, and nothing that is not ours is replaced."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from nemo_trt.errors import CheckpointError, ExportError
from nemo_trt.export import bundle as bundle_module
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.quantization.calibrate import calibrate
from nemo_trt.export.quantization.weights import scales_of, write_fp8_weights
from nemo_trt.manifest import read_manifest
from nemo_trt.precision import DType
from nemo_trt.progress import Silent
from nemo_trt.quantization import Quantization
from nemo_trt.stages import export as stage
from nemo_trt.stages.export import export_checkpoint

pytestmark = pytest.mark.model
FOREIGN = {
    "model.onnx": b"a graph of another tool",
    "manifest.json": b'{"name": "a web page"}',
    "manifest.next.json": b"[]",
}


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own that a test may export in place."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def quantization(tiny_checkpoint: Path) -> Quantization:
    return calibrate(
        open_checkpoint(tiny_checkpoint),
        [[1, 2, 3, 4], [5, 6, 7]],
        calibration={"name": "test"},
        max_kl=100.0,
        progress=Silent(),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 2**26 + 1000))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight may be read, nothing calibrated and nothing traced."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done")

    for module, name in (
        (bundle_module, "require_finite"),
        (bundle_module, "trace_decoder"),
        (stage, "quantize"),
    ):
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.usefixtures("no_work")
def test_a_foreign_file_is_not_replaced_in_place(name: str, force: bool, checkpoint: Path) -> None:
    (checkpoint / name).write_bytes(FOREIGN[name])
    before = contents(checkpoint)
    with pytest.raises(ExportError, match=rf"{name} .*was not written by nemo-trt"):
        export_bundle(checkpoint, checkpoint, weights="in-place", force=force)
    assert contents(checkpoint) == before


def test_what_a_killed_export_left_in_place_goes_with_the_next(checkpoint: Path) -> None:
    manifest = export_bundle(checkpoint, checkpoint, weights="in-place")
    graph = (checkpoint / "model.onnx").read_bytes()
    (checkpoint / "manifest.json").rename(checkpoint / "manifest.next.json")
    (checkpoint / "model.onnx").rename(checkpoint / ".model.onnx.partial")
    (checkpoint / ".manifest.next.json.partial").write_text("{")
    assert export_bundle(checkpoint, checkpoint, weights="in-place") == manifest
    assert (checkpoint / "model.onnx").read_bytes() == graph
    assert not [name for name in contents(checkpoint) if "next" in name or "partial" in name]
    assert read_manifest(checkpoint) == manifest


@pytest.mark.usefixtures("no_work")
def test_a_link_to_weights_is_refused_before_they_are_read(
    checkpoint: Path, tmp_path: Path
) -> None:
    real = (checkpoint / "model.safetensors").rename(tmp_path / "blob")
    (checkpoint / "model.safetensors").symlink_to(real)
    with pytest.raises(ExportError, match="symbolic link"):
        export_bundle(checkpoint, checkpoint, weights="in-place")


@pytest.mark.usefixtures("no_work")
def test_fp8_in_place_is_refused_before_the_calibration(checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="--weights must be copy for FP8"):
        export_checkpoint(checkpoint, checkpoint, precision="fp8", weights="in-place")


@pytest.mark.usefixtures("no_work", "full_disk")
def test_a_full_disk_is_named_before_the_calibration(checkpoint: Path, tmp_path: Path) -> None:
    for precision in ("bf16", "fp8"):
        with pytest.raises(ExportError, match="GB free"):
            export_checkpoint(checkpoint, tmp_path / "bundle", precision=precision)
    assert not (tmp_path / "bundle").exists()


def test_fp8_weights_are_read_once_and_checked_then(
    checkpoint: Path, tmp_path: Path, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "require_finite", None)  # would read them once more
    opened = open_checkpoint(checkpoint)
    export_bundle(opened, tmp_path / "bundle", precision=DType.FP8, quantization=quantization)
    scales = scales_of(opened, quantization)
    tensors = load_file(checkpoint / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        broken = {**tensors, name: tensors[name].clone()}
        broken[name].view(-1)[7] = float("nan")
        save_file(broken, checkpoint / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"{name} must hold finite numbers"):
            opened = open_checkpoint(checkpoint)
            write_fp8_weights(opened, quantization, scales, tmp_path / "x.safetensors", Silent())


def test_a_calibration_stops_at_a_weight_that_is_no_number(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name][3, 5] = float("inf")
    save_file(tensors, checkpoint / "model.safetensors")
    opened = open_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=f"{name} must hold finite numbers"):
        calibrate(opened, [[1, 2, 3]], calibration={}, max_kl=100.0, progress=Silent())
