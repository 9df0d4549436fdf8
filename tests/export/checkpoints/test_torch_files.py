"""Edges of PyTorch's files and of tensors made of parts: what does not fit is refused."""

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.checkpoints.blob import FileBlob
from nemo_trt.export.checkpoints.derived import Tile, tiled
from nemo_trt.export.checkpoints.torch_zip import read_torch_zip
from nemo_trt.precision import DType
from nemo_trt.tensors import TensorRef

KEY = "model.decoder.final_layernorm.weight"
pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


def blob(path: Path) -> FileBlob:
    return FileBlob(path, 0, path.stat().st_size, str(path))


def test_views_of_one_storage_are_read_where_they_start(tmp_path: Path) -> None:
    whole = torch.arange(60, dtype=torch.float32).reshape(10, 6)
    torch.save({"a": whole[4:7], "b": whole.view(-1)[13:20]}, tmp_path / "x")
    found = read_torch_zip(blob(tmp_path / "x"))
    np.testing.assert_array_equal(found["a"].read(), whole[4:7].numpy())
    np.testing.assert_array_equal(found["b"].rows(2, 5), whole.view(-1)[15:18].numpy())


def test_packed_bytes_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "x")
    with (
        zipfile.ZipFile(tmp_path / "x") as source,
        zipfile.ZipFile(tmp_path / "y", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match=r"data/0 in .* must be stored as it is"):
        read_torch_zip(blob(tmp_path / "y"))


def test_a_view_past_its_storage_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(100)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "y", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):  # BININT1 100, the length of the one axis
                assert data.count(b"Kd\x85") == 1
                data = data.replace(b"Kd\x85", b"K\xc8\x85")
            target.writestr(name, data)
    with pytest.raises(CheckpointError, match="must lie within the 400 bytes"):
        read_torch_zip(blob(tmp_path / "y"))


def moved(metadata: Any, **changes: Any) -> None:
    (index,) = [one for one in metadata.storage_data if one.fqn == KEY]
    metadata.storage_data[index] = replace(metadata.storage_data[index], **changes)


def elsewhere(metadata: Any) -> None:
    """Point the norm at the bytes of the embedding."""
    other = "model.embedding.word_embeddings.weight"
    (index,) = [one for one in metadata.storage_data if one.fqn == other]
    found = metadata.storage_data[index]
    moved(metadata, offset=found.offset, length=found.length)


def smaller(metadata: Any) -> None:
    (chunk,) = metadata.state_dict_metadata[KEY].chunks
    chunk.sizes = torch.Size([chunk.sizes[0] - 1])


def chunkless(metadata: Any) -> None:
    metadata.state_dict_metadata[KEY].chunks = []


def twice(metadata: Any) -> None:
    chunks = metadata.state_dict_metadata[KEY].chunks
    chunks.append(chunks[0])


def larger(metadata: Any) -> None:
    found = metadata.state_dict_metadata[KEY]
    found.size = torch.Size([found.size[0] + 1])


DAMAGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "leaves the folder": (
        lambda m: moved(m, relative_path="../x.distcp"),
        "must lie in a file of its own folder, got '../x.distcp'",
    ),
    "behind the file": (lambda m: moved(m, offset=10**12), "must lie within"),
    "negative": (lambda m: moved(m, offset=-1), "must lie within"),
    "of another tensor": (elsewhere, "final_layernorm.weight in .* must have bf16"),
    "of another size": (smaller, "final_layernorm.weight in .* must have bf16"),
    "no chunks": (chunkless, "final_layernorm.weight in .* parts of one dtype"),
    "a chunk twice": (twice, "has two parts that overlap"),
    "not covered": (larger, "1 of .* numbers are in none"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_metadata_that_lies_is_refused(
    damage: str, written: dict[str, Path], tmp_path: Path
) -> None:
    change, message = DAMAGES[damage]
    folder = tmp_path / "model"
    shutil.copytree(written["torch_dist"], folder)
    path = folder / "model_weights" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def part(rows: int, columns: int, dtype: DType = DType.FP32) -> TensorRef:
    return TensorRef(name="x", dtype=dtype, shape=(rows, columns), path=Path("x"), offset=0)


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ([Tile((0, 0), part(2, 3))], "3 of 9 numbers are in none"),
        ([Tile((0, 0), part(2, 3)), Tile((1, 0), part(2, 3))], "overlap"),
        ([Tile((0, 0), part(3, 3)), Tile((3, 0), part(1, 3))], "outside of it"),
        ([Tile((0, 0), part(2, 3)), Tile((2, 0), part(1, 3, DType.BF16))], "parts of one dtype"),
    ],
)
def test_parts_must_cover_the_whole_once(tiles: list[Tile], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tiled("x", (3, 3), tiles, "a file")
