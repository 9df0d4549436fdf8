"""Tensors made of other tensors: rows in another order, tiles of a whole, one layer of a stack.

Nothing is read until rows are asked for, and then only what these rows need.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt.errors import CheckpointError
from nemo_trt.tensors import LazyTensor, TensorRef

_GAP = 8  # rows that are read and dropped sooner than that a second read is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered(LazyTensor):
    """Rows of a tensor, in any order.

    Attributes:
        index: (rows,) int64; row i is row `index[i]` of the source.
    """

    source: LazyTensor
    index: NDArray[np.int64]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`: neighbouring rows of the source are read together."""
        wanted = self.index[start:stop]
        order = np.argsort(wanted, kind="stable")
        steps = np.diff(wanted[order])
        if not (steps - 1).any() and (order[:-1] < order[1:]).all():
            return self.source.rows(int(wanted[0]), int(wanted[-1]) + 1)
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype.numpy_name)
        for run in np.split(order, np.flatnonzero(steps > _GAP) + 1):
            first = int(wanted[run[0]])
            read = self.source.rows(first, int(wanted[run[-1]]) + 1)
            found[run] = read[wanted[run] - first]
        return found


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a whole; what reaches past the whole is padding."""

    start: tuple[int, ...]
    tensor: LazyTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiled(LazyTensor):
    """A tensor in tiles that cover it without overlaps: see `tiled`."""

    tiles: tuple[Tile, ...]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`: of each tile, the rows that lie in the range."""
        found = np.empty((stop - start, *self.shape[1:]), self.dtype.numpy_name)
        for tile in self.tiles:
            first = tile.start[0]
            low, high = max(start, first), min(stop, first + tile.tensor.shape[0])
            if low >= high:
                continue
            part = tile.tensor.rows(low - first, high - first)
            ends = [
                min(begin + length, whole)
                for begin, length, whole in zip(
                    tile.start[1:], tile.tensor.shape[1:], self.shape[1:], strict=True
                )
            ]
            inner = zip(tile.start[1:], ends, strict=True)
            target = (slice(low - start, high - start), *(slice(*pair) for pair in inner))
            kept = zip(tile.start[1:], ends, strict=True)
            found[target] = part[(slice(None), *(slice(0, end - begin) for begin, end in kept))]
        return found


def tiled(name: str, shape: tuple[int, ...], tiles: Iterable[Tile], where: str) -> LazyTensor:
    """A tensor that `tiles` make up; the tile itself where there is one.

    Args:
        where: the file, for the error's sentence.

    Raises:
        CheckpointError: the tiles differ in dtype, overlap, leave gaps or lie outside.
    """
    parts = sorted(tiles, key=lambda tile: tile.start)
    dtypes = {tile.tensor.dtype for tile in parts}
    if len(dtypes) != 1:
        raise CheckpointError(
            f"{name} in {where} must have parts of one dtype, got {sorted(dtypes)}."
        )
    if len(parts) == 1 and parts[0].tensor.shape == shape and not any(parts[0].start):
        return replace(parts[0].tensor, name=name)
    covered = 0
    for number, tile in enumerate(parts):
        lengths = tile.tensor.shape
        if len(tile.start) != len(shape) or len(lengths) != len(shape):
            raise CheckpointError(f"{name} in {where} has a part of another number of axes.")
        ends = [min(s + n, whole) for s, n, whole in zip(tile.start, lengths, shape, strict=True)]
        if any(end <= begin for begin, end in zip(tile.start, ends, strict=True)):
            raise CheckpointError(f"{name} in {where} has a part that lies outside of it.")
        covered += math.prod(end - begin for begin, end in zip(tile.start, ends, strict=True))
        if any(_overlap(tile, other) for other in parts[:number]):
            raise CheckpointError(f"{name} in {where} has two parts that overlap.")
    if covered != math.prod(shape):
        raise CheckpointError(
            f"{name} in {where} must be covered by its parts, but {math.prod(shape) - covered} of "
            f"{math.prod(shape)} numbers are in none. The file is incomplete; fetch it again."
        )
    return Tiled(name=name, dtype=dtypes.pop(), shape=shape, tiles=tuple(parts))


def _overlap(one: Tile, other: Tile) -> bool:
    return all(
        max(a, b) < min(a + n, b + m)
        for a, n, b, m in zip(
            one.start, one.tensor.shape, other.start, other.tensor.shape, strict=True
        )
    )


def joined(name: str, parts: Iterable[LazyTensor], axis: int, where: str) -> LazyTensor:
    """Tensors one after the other along axis 0 or 1.

    Raises:
        CheckpointError: they do not fit.
    """
    tiles, length = [], 0
    shape: list[int] = []
    for part in parts:
        shape = list(part.shape)
        if axis >= len(shape):
            raise CheckpointError(f"{name} in {where} must have {axis + 1} axes, got {shape}.")
        start = [0] * len(shape)
        start[axis] = length
        tiles.append(Tile(tuple(start), part))
        length += shape[axis]
    shape[axis] = length
    return tiled(name, tuple(shape), tiles, where)


def row_range(name: str, source: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Rows `start` to `stop` of a tensor; of one that lies in a file, still a range of the file."""
    shape = (stop - start, *source.shape[1:])
    if isinstance(source, TensorRef):
        offset = source.offset + start * source.row_bytes
        return replace(source, name=name, shape=shape, offset=offset)
    index = np.arange(start, stop, dtype=np.int64)
    return gathered(name, source, index)


def gathered(name: str, source: LazyTensor, index: NDArray[np.int64]) -> LazyTensor:
    """Rows of a tensor in the order of `index`."""
    shape = (len(index), *source.shape[1:])
    return Gathered(name=name, dtype=source.dtype, shape=shape, source=source, index=index)


def unstacked(source: LazyTensor, index: int) -> LazyTensor:
    """Row `index` of a tensor as a tensor of one axis less: one layer of a stack."""
    shape = source.shape[1:]
    if isinstance(source, TensorRef):
        return replace(source, shape=shape, offset=source.offset + index * source.row_bytes)
    if isinstance(source, Tiled):
        tiles = [
            Tile(tile.start[1:], unstacked(tile.tensor, index - tile.start[0]))
            for tile in source.tiles
            if tile.start[0] <= index < tile.start[0] + tile.tensor.shape[0]
        ]
        if len(tiles) == 1 and tiles[0].tensor.shape == shape:
            return tiles[0].tensor
        return Tiled(name=source.name, dtype=source.dtype, shape=shape, tiles=tuple(tiles))
    return Unstacked(name=source.name, dtype=source.dtype, shape=shape, source=source, index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstacked(LazyTensor):
    """One layer of a stack that can only be read a layer at a time."""

    source: LazyTensor
    index: int

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`."""
        found: NDArray[Any] = self.source.rows(self.index, self.index + 1)[0, start:stop]
        return found


def half_split_index(num_heads: int, head_dim: int) -> NDArray[np.int64]:
    """For q or k with interleaved RoPE pairs: where row i of the half-split order stands.

    Mistral's own files and GGUF turn neighbouring rows of a head together, transformers row j with
    row j + head_dim / 2. (`permute_for_rope` in transformers' Mistral conversion is the same map.)
    """
    index = np.arange(num_heads * head_dim, dtype=np.int64)
    return index.reshape(num_heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def interleaved_index(num_heads: int, head_dim: int) -> NDArray[np.int64]:
    """The inverse of `half_split_index`."""
    return np.argsort(half_split_index(num_heads, head_dim)).astype(np.int64)
