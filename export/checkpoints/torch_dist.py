"""Reads PyTorch's distributed checkpoints: `.metadata` and the `.distcp` files that it points into.

Source: torch.distributed.checkpoint (filesystem.py, metadata.py). Its own reader unpickles both
`.metadata` and every non-tensor entry without restraint; here neither can run anything, and what is
no tensor is not read at all.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.shown import shown
from nemo_trt.tensors import LazyTensor

from .blob import Blob
from .derived import Tile, tiled
from .torch_pickle import TORCH_DTYPES, Record, record_class, size_of, unpickle
from .torch_zip import read_torch_zip

METADATA = ".metadata"
_MAX_METADATA_BYTES = 16 * 2**20
_MAX_TILES = 8192
_RECORDS = (
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.planner.SavePlan",
    "torch.distributed.checkpoint.planner.WriteItem",
    "torch.distributed.checkpoint.planner.WriteItemType",
    "torch.distributed.checkpoint.planner.TensorWriteData",
    "torch.serialization._get_layout",
    "megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlan",
    "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
)


class _Properties(Record):
    """TensorProperties: its state is a tuple that starts with the dtype."""


_NAMES: dict[str, Any] = {
    **{name: record_class(name) for name in _RECORDS},
    "torch.distributed.checkpoint.metadata.TensorProperties": _Properties,
    "torch.Size": size_of,
    **{f"torch.{name}": name for name in TORCH_DTYPES},
    **{
        f"torch.{name}": f"no weight: {name}"
        for name in ("uint8", "int8", "int16", "int32", "bool", "float64", "float8_e4m3fn")
    },
}


def read_torch_dist(files: Mapping[str, Blob], folder: str) -> dict[str, LazyTensor]:
    """Every tensor of a distributed checkpoint by its key.

    Args:
        files: of the archive.
        folder: of the checkpoint in it, "" or with a slash at its end.

    Raises:
        CheckpointError: a file is missing, damaged, hostile, or does not cover a tensor.
    """
    blob = files[f"{folder}{METADATA}"]
    metadata = unpickle(blob.contents(_MAX_METADATA_BYTES), blob.label, _NAMES)
    try:
        described = {
            str(key): value
            for key, value in metadata.state_dict_metadata.items()
            if type(value).__name__ == "TensorStorageMetadata"
        }
        wanted = {
            (index.fqn, _counts(index.offset)): info
            for index, info in metadata.storage_data.items()
            if index.fqn in described
        }
        return {key: _tensor(key, value, wanted, files, folder) for key, value in described.items()}
    except (AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{blob.label} lacks what describes a checkpoint: {type(error).__name__} "
            f"{str(error)[:200]}."
        ) from error


def _tensor(
    key: str,
    described: Any,
    storage: Mapping[tuple[str, tuple[int, ...]], Any],
    files: Mapping[str, Blob],
    folder: str,
) -> LazyTensor:
    where = f"{folder}{METADATA}"
    shape = _counts(described.size)
    dtype = TORCH_DTYPES.get(str(described.properties.state[0]))
    if dtype is None:
        raise CheckpointError(
            f"{key} in {where} must be of {', '.join(TORCH_DTYPES)}, got "
            f"{shown(described.properties.state[0])}."
        )
    if len(described.chunks) > _MAX_TILES:
        raise CheckpointError(f"{key} in {where} has {len(described.chunks)} chunks.")
    tiles = []
    for chunk in described.chunks:
        start, size = _counts(chunk.offsets), _counts(chunk.sizes)
        info = storage.get((key, start))
        if info is None:
            raise CheckpointError(f"{key} in {where} has a chunk at {list(start)} with no bytes.")
        tensor = _chunk(key, info, files, folder)
        if tensor.shape != size or tensor.dtype is not dtype:
            raise CheckpointError(
                f"{key} in {where} must have {dtype} {list(size)} at {list(start)}, got "
                f"{tensor.dtype} {list(tensor.shape)}."
            )
        tiles.append(Tile(start, replace(tensor, name=key)))
    return tiled(key, shape, tiles, where)


def _chunk(key: str, info: Any, files: Mapping[str, Blob], folder: str) -> LazyTensor:
    name = info.relative_path
    if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{key} must lie in a file of its own folder, got {shown(name)}.")
    if getattr(info, "transform_descriptors", None):
        raise CheckpointError(f"{key} in {name} is packed, which is not read.")
    blob = files.get(f"{folder}{name}")
    if blob is None:
        raise CheckpointError(f"{key} lies in {folder}{name}, which is missing. Fetch that file.")
    blob.require(info.offset, info.length, f"{key} in {name}")
    part = blob.part(info.offset, info.length)
    found = read_torch_zip(part)
    if not isinstance(found, LazyTensor):
        raise CheckpointError(f"{key} in {blob.label} must be a tensor.")
    return found


def _counts(value: Any) -> tuple[int, ...]:
    counts = tuple(value) if value is not None else ()
    if len(counts) > 8 or not all(isinstance(n, int) and 0 <= n < 2**63 for n in counts):
        raise CheckpointError(f"A shape or an offset must be of counts, got {shown(counts)}.")
    return counts
