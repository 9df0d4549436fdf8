"""Chooses the writer of a format, and makes its target appear whole or not at all."""

from pathlib import Path

from nemo_trt import atomic
from nemo_trt.errors import ExportError
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.export.written import mark, require_free_name
from nemo_trt.progress import Progress, Silent

from . import huggingface, mistral

FORMATS = ("hf", "mistral", "nemo")
"""What can be written: folders, and for "nemo" one archive."""


def convert(
    checkpoint: Checkpoint,
    dest: Path,
    to: str,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Convert a checkpoint to the format `to`. Memory: a few pieces of 8 MB.

    Args:
        checkpoint: whatever `open_checkpoint` gave.
        dest: the folder to write, or for "nemo" the archive.
        force: replace what is there, if nemo-trt wrote it.

    Raises:
        ExportError: `dest` exists, the disk has no room, or `to` is none of `FORMATS`.
        CheckpointError: a weight cannot be read.
    """
    progress = progress or Silent()
    if to not in FORMATS:
        raise ExportError(f"--to must be one of {', '.join(FORMATS)}, got {to!r}.")
    require_free_name(dest, force=force, archive=to == "nemo")
    atomic.require_free_disk(dest, checkpoint.num_bytes + 2**26)
    if to == "nemo":
        from . import nemo  # PyTorch's classes, which take their time to load

        with atomic.new_file(dest, replace=force) as temporary:
            nemo.write(checkpoint, temporary, progress)
        return
    with atomic.new_directory(dest, replace=force) as folder:
        mark(folder)
        (huggingface if to == "hf" else mistral).write(checkpoint, folder, progress)
        for file in checkpoint.tokenizer_files:
            file.write_to(folder)
