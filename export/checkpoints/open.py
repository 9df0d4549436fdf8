"""Chooses the checkpoint reader by what is on disk."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError

from .checkpoint import Checkpoint

FORMATS = {
    "hf": ("huggingface", "a folder with config.json and model*.safetensors"),
    "mistral": ("mistral", "a folder with params.json and consolidated*.safetensors"),
    "nemo": ("nemo", "a .nemo archive, the same unpacked, or a NeMo 2 folder"),
    "gguf": ("gguf", "a .gguf file"),
}
"""Name of each container -> the module that reads it, and what it looks like; in this order."""


def open_checkpoint(path: Path, format: str | None = None) -> Checkpoint:
    """Open a checkpoint: its tensors are lazy, no weight is read.

    Args:
        path: the file or folder; `FORMATS` says which.
        format: the container's name; by default the first whose files are there.

    Raises:
        CheckpointError: there is nothing to read, or it is damaged, incomplete or not supported.
    """
    if not path.exists():
        raise CheckpointError(f"{path} must exist, got nothing there. Check the spelling.")
    if format is not None:
        if format not in FORMATS:
            raise CheckpointError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}.")
        return _opened(_reader(format), path)
    for reader in map(_reader, FORMATS):
        if reader.recognises(path):
            return _opened(reader, path)
    raise CheckpointError(f"{path} must be {'; '.join(_looks())}. Got none of these.")


def _opened(reader: Any, path: Path) -> Checkpoint:
    checkpoint: Checkpoint = reader.read(path)
    return checkpoint


def _reader(name: str) -> Any:
    return importlib.import_module(f".{FORMATS[name][0]}", __package__)


def _looks() -> Iterator[str]:
    for name, (_, looks) in FORMATS.items():
        yield f"{looks} ({name})"
