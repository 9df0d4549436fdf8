"""Weights that are NaN or infinite stop an export, wherever they stand and whatever format."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nemo_trt.errors import CheckpointError
from nemo_trt.export import finite
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.finite import require_finite
from nemo_trt.progress import Silent
from nemo_trt.safetensors import read_layout

pytestmark = pytest.mark.model
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn]


def check(path: Path) -> None:
    require_finite(read_layout(path).values(), Silent())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern_is_judged_as_pytorch_judges_it(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    width = torch.empty((), dtype=dtype).element_size()
    if width == 4:  # the patterns around each border, and random ones
        seeds = np.array([0, 1, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FFFFFFF], np.uint32)
        random = np.random.default_rng(0).integers(0, 2**32, 500, np.uint32)
        patterns = np.concatenate([seeds, seeds | 0x80000000, random])
    else:
        patterns = np.arange(256**width, dtype=f"uint{8 * width}")
    raw = torch.from_numpy(patterns.view(np.uint8)).view(dtype)
    expected = torch.isfinite(raw.float()).numpy()
    assert 0 < expected.sum() < len(patterns)
    tensor = next(iter(read_layout(one_tensor(tmp_path, dtype)).values()))
    for number, is_finite in enumerate(expected):
        try:
            finite._require(tensor, patterns[number : number + 1].view(np.uint8))
            found = True
        except CheckpointError:
            found = False
        assert found == is_finite, hex(int(patterns[number]))


def one_tensor(folder: Path, dtype: torch.dtype) -> Path:
    path = folder / f"{dtype}.safetensors"
    if not path.exists():
        save_file({"x": torch.zeros(1, dtype=dtype)}, path)
    return path


@settings(max_examples=30)
@given(
    at=st.integers(0, 299_999), data=st.sampled_from([float("nan"), float("inf"), -float("inf")])
)
def test_one_bad_number_is_found_anywhere(
    at: int, data: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bad") / "x.safetensors"
    values = torch.zeros(300_000, dtype=torch.float32)
    save_file({"good": values, "x": values.index_fill(0, torch.tensor(at), data)}, path)
    with pytest.raises(CheckpointError, match="x must hold finite numbers"):
        check(path)


def test_holes_are_skipped_and_what_stands_between_them_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(8)}, path)
    size = 64 * 2**20
    header = path.read_bytes()[:-32].replace(b"[8]", b"[%d]" % (size // 4))
    header = header.replace(b"[0,32]", b"[0,%d]" % size)[8:].rstrip()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    check(path)
    with path.open("r+b") as file:
        file.seek(8 + len(header) + size // 2)
        file.write(np.float32("nan").tobytes())
    with pytest.raises(CheckpointError, match="finite"):
        check(path)


@pytest.mark.parametrize("left", [0.0, 0.5])
@pytest.mark.parametrize("seen", ["by its size", "by a read"])
def test_a_file_that_became_shorter_is_refused(
    left: float, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(2**19)}, path)
    refs = read_layout(path).values()
    size = path.stat().st_size
    os.truncate(path, size - 2**21 + int(left * 2**21))
    if seen == "by a read":  # it is cut between the look at its size and the read
        monkeypatch.setattr(finite, "_data_ranges", lambda _, start, stop, __: [(start, stop)])
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        require_finite(refs, Silent())


@pytest.mark.parametrize("mode", ["copy", "in-place", "written anew"])
def test_export_refuses_them_and_writes_nothing(
    mode: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("inf")
    prefix = "module." if mode == "written anew" else ""
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors")
    bundle = folder if mode == "in-place" else tmp_path / "bundle"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight must hold finite"):
        export_bundle(
            open_checkpoint(folder), bundle, weights="in-place" if mode == "in-place" else "copy"
        )
    assert sorted(tmp_path.rglob("*")) == before
