"""Hugging Face safetensors, read by the safetensors package."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor

from nemo_trt.errors import CheckpointError

from .source import WeightSource

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_SCALES = ("_scale", "_scale_inv")


class SafetensorsWeights(WeightSource):
    """Weights of safetensors files; FP8 codes are multiplied by their stored scales.

    Args:
        files: stored name -> the file that holds it.
        dtypes: name -> dtype of the weight in the bundle.
        block: rows and columns that share an FP8 block scale.
    """

    def __init__(
        self,
        files: dict[str, Path],
        dtypes: dict[str, torch.dtype],
        block: tuple[int, int] | None = None,
    ) -> None:
        self.files, self.dtypes, self.block = files, dtypes, block
        self.reader = f"safetensors {safetensors.__version__}"
        self._open: dict[Path, Any] = {}

    def stored(self, name: str) -> str:
        """The stored name of a weight: itself, or behind a prefix that every name shares."""
        if name in self.files:
            return name
        found = [key for key in self.files if key.endswith(f".{name}")]
        if len(found) != 1:
            raise CheckpointError(f"safetensors must find one {name}, got {len(found)}.")
        return found[0]

    def weight(self, name: str) -> Tensor:
        """See `WeightSource.weight`."""
        stored = self.stored(name)
        return self._as_bundle(name, stored, self._file(stored).get_tensor(stored), None)

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """See `WeightSource.rows`."""
        stored = self.stored(name)
        part = self._file(stored).get_slice(stored)
        if isinstance(rows, range) and rows.step == 1:
            found = part[rows.start : rows.stop]
        else:
            found = torch.stack([part[row] for row in rows])
        return self._as_bundle(name, stored, found, rows)

    def _file(self, stored: str) -> Any:
        path = self.files[stored]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]

    def _as_bundle(
        self, name: str, stored: str, values: Tensor, rows: Sequence[int] | None
    ) -> Tensor:
        if values.dtype == torch.float8_e4m3fn:
            values = values.float() * self._scale(stored, values, rows)
        return values.to(self.dtypes[name])

    def _scale(self, stored: str, values: Tensor, rows: Sequence[int] | None) -> Tensor:
        names = [f"{stored}{suffix}" for suffix in _SCALES if f"{stored}{suffix}" in self.files]
        if len(names) != 1:
            raise CheckpointError(f"{stored} is FP8 and must have one scale, got {len(names)}.")
        scale: Tensor = self._file(names[0]).get_tensor(names[0]).float()
        if scale.numel() == 1:
            return scale.reshape(())
        if self.block:
            high, wide = self.block
            scale = scale.repeat_interleave(high, 0).repeat_interleave(wide, 1)
            scale = scale[:, : values.shape[1]]
        else:
            scale = scale.reshape(-1, 1)
        return scale[: len(values)] if rows is None else scale[list(rows)]


def open_huggingface(path: Path, dtypes: dict[str, torch.dtype]) -> SafetensorsWeights:
    """The weights of a folder with config.json.

    Raises:
        CheckpointError: the index names no file.
    """
    if (path / _INDEX).is_file():
        index = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        files = {name: path / file for name, file in index["weight_map"].items()}
    else:
        files = names_in(path / _SINGLE)
    return SafetensorsWeights(files, dtypes, _block(path / "config.json"))


def _block(config: Path) -> tuple[int, int] | None:
    """Rows and columns that share an FP8 scale, as transformers' or compressed-tensors' config."""
    stated = json.loads(config.read_text(encoding="utf-8"))
    stated = stated.get("quantization_config") or stated.get("compression_config") or {}
    groups = [group["weights"] for group in (stated.get("config_groups") or {}).values()]
    blocks = [stated.get("weight_block_size"), *(one.get("block_structure") for one in groups)]
    return next(((block[0], block[1]) for block in blocks if block), None)


def names_in(*files: Path) -> dict[str, Path]:
    """Stored name -> file, of safetensors files."""
    found: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found
