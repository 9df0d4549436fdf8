"""Chooses the checkpoint reader by what is on disk."""

from pathlib import Path

from nemo_trt.errors import CheckpointError

from . import huggingface
from .checkpoint import Checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint: its tensors are lazy, no weight is read.

    Args:
        path: a folder with config.json and safetensors files, as Hugging Face lays them out.

    Raises:
        CheckpointError: there is nothing to read, or it is damaged, incomplete or not supported.
    """
    if not path.exists():
        raise CheckpointError(f"{path} must exist, got nothing there. Check the spelling.")
    if huggingface.recognises(path):
        return huggingface.read(path)
    raise CheckpointError(
        f"{path} must be a folder with config.json and model.safetensors (or its shards and "
        "model.safetensors.index.json). Other containers are not read."
    )
