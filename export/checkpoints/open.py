"""Chooses the checkpoint reader by what is on disk."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.lfs import require_content

from .checkpoint import Checkpoint
from .hub_cache import in_snapshot

FORMATS = {
    "hf": ("huggingface", "a folder with config.json and model*.safetensors"),
    "mistral": ("mistral", "a folder with params.json and consolidated*.safetensors"),
    "nemo": ("nemo", "a .nemo archive, the same unpacked, or a NeMo 2 folder"),
    "gguf": ("gguf", "a .gguf file"),
}
"""Name of each format -> the module that reads it, and what it looks like; in this order."""

_WITH_FP8 = ("hf", "mistral")


def open_checkpoint(
    path: Path, format: str | None = None, *, dequantise: bool = False, keep_fp8: bool = False
) -> Checkpoint:
    """Open a checkpoint: its tensors are lazy, no weight is read.

    Args:
        path: the file or folder; `FORMATS` says which. Of a model's folder in the Hugging Face
            cache (`models--ORG--NAME`), the current snapshot is opened.
        format: the format's name; by default the first whose files are there.
        dequantise: read FP8 weights as BF16 ones.
        keep_fp8: read FP8 weights as the codes that they are, their scales in `Checkpoint.fp8`.
            With neither, a checkpoint of FP8 weights is refused.

    Raises:
        CheckpointError: there is nothing to read, or it is damaged, incomplete or not supported.
    """
    path = in_snapshot(path)
    name = _format_of(path, format)
    options = {}
    if name in _WITH_FP8:
        options = {"dequantise": dequantise, "keep_fp8": keep_fp8}
    elif dequantise:
        raise CheckpointError(
            f"--dequantise is for FP8 weights of {' and '.join(_WITH_FP8)}, got {name}."
        )
    checkpoint: Checkpoint = _reader(name).read(path, **options)
    return checkpoint


def open_reference(path: Path, format: str | None = None) -> Checkpoint:
    """Open a checkpoint to compute with: FP8 weights, where it has any, are read as BF16.

    Raises:
        CheckpointError: see `open_checkpoint`.
    """
    path = in_snapshot(path)
    name = _format_of(path, format)
    return open_checkpoint(path, name, dequantise=name in _WITH_FP8)


def _format_of(path: Path, format: str | None) -> str:
    if not path.exists():
        raise CheckpointError(f"{path} must exist, got nothing there. Check the spelling.")
    if format is not None and format not in FORMATS:
        raise CheckpointError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if path.is_file():
        require_content(path)
    for name in [format] if format else FORMATS:
        if format or _reader(name).recognises(path):
            return name
    raise CheckpointError(
        f"{path} must be {'; '.join(_looks())}. Got none of these{_files_in(path)}."
    )


def _files_in(path: Path) -> str:
    """Checkpoints of one file in a folder, which has to be named itself."""
    files = [file for form in ("*.gguf", "*.nemo") for file in sorted(path.glob(form))][:3]
    return (
        f", but a folder with checkpoints. Name one: {' or '.join(map(str, files))}"
        if files
        else ""
    )


def _reader(name: str) -> Any:
    return importlib.import_module(f".{FORMATS[name][0]}", __package__)


def _looks() -> Iterator[str]:
    for name, (_, looks) in FORMATS.items():
        yield f"{looks} ({name})"
