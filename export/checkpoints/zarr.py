"""Reads Megatron's zarr checkpoints: a folder a tensor, `.zarray` beside raw chunks.

Format: zarr version 2, https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Megatron wrote
chunks uncompressed and called BF16 "bfloat16" (strategies/zarr.py, before it dropped the format).
"""

import itertools
import math
from collections.abc import Mapping

from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.tensors import LazyTensor

from .blob import Blob
from .derived import Tile, Tiled
from .fields import Fields
from .text_files import parse_json

ZARRAY = ".zarray"
_MAX_TILES = 65536
_DTYPES = {
    "bfloat16": DType.BF16,
    "<V2": DType.BF16,
    "|V2": DType.BF16,
    "<f2": DType.FP16,
    "<f4": DType.FP32,
}


def read_zarr(files: Mapping[str, Blob], folder: str) -> dict[str, LazyTensor]:
    """Every tensor of a zarr checkpoint by its key.

    Raises:
        CheckpointError: an array is damaged, incomplete, or packed.
    """
    found = {}
    for name, blob in files.items():
        if name.startswith(folder) and name.endswith(f"/{ZARRAY}"):
            key = name.removeprefix(folder).removesuffix(f"/{ZARRAY}")
            found[key] = _array(key, blob, files, f"{folder}{key}/")
    return found


def _array(key: str, zarray: Blob, files: Mapping[str, Blob], folder: str) -> LazyTensor:
    fields = Fields(parse_json(zarray.contents(2**20), zarray.label), zarray.label)
    fields.only("zarr_format", 2, why="other versions are not read")
    fields.only("compressor", None, why="packed chunks are not read")
    fields.only("filters", None, why="packed chunks are not read")
    fields.only("order", "C", why="other orders are not read")
    separator = fields.raw.get("dimension_separator", ".")
    dtype = _DTYPES.get(str(fields.raw.get("dtype")))
    if dtype is None:
        raise fields.error("dtype", f"must be one of {', '.join(_DTYPES)}")
    shape, chunk = _counts(fields, "shape"), _counts(fields, "chunks")
    if len(shape) != len(chunk) or not shape:
        raise fields.error("chunks", f"must have as many axes as the shape, {list(shape)}")
    grid = [range(math.ceil(n / c)) for n, c in zip(shape, chunk, strict=True)]
    if math.prod(map(len, grid)) > _MAX_TILES:
        raise fields.error("chunks", f"must be at most {_MAX_TILES}")
    tiles = []
    for place in itertools.product(*grid):
        name = f"{folder}{separator.join(map(str, place))}"
        blob = files.get(name)
        if blob is None:
            raise CheckpointError(f"{key} needs its chunk {name}, which is missing. Fetch it.")
        num_bytes = math.prod(chunk) * dtype.itemsize
        if blob.num_bytes != num_bytes:
            raise CheckpointError(
                f"{blob.label} must be {num_bytes} bytes long by {ZARRAY}, got {blob.num_bytes}."
            )
        start = tuple(i * c for i, c in zip(place, chunk, strict=True))
        tiles.append(Tile(start, blob.tensor(dtype, chunk, 0, key)))
    if len(tiles) == 1 and chunk == shape:
        return tiles[0].tensor
    return Tiled(name=key, dtype=dtype, shape=shape, tiles=tuple(tiles))


def _counts(fields: Fields, name: str) -> tuple[int, ...]:
    value = fields.raw.get(name)
    if not isinstance(value, list) or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**63 for n in value
    ):
        raise fields.error(name, "must be a list of positive integers")
    return tuple(value)
