"""What `--force` may replace: checkpoints that nemo-trt wrote, which carry its mark."""

from pathlib import Path

from nemo_trt import __version__, atomic
from nemo_trt.errors import CheckpointError, ExportError

from .checkpoints.archive import open_archive

MARK_FILE = ".nemo-trt"
MARK_LINE = b"# Written by nemo-trt"  # the first bytes of model_config.yaml in a .nemo archive
_CONFIG = "model_config.yaml"


def mark(folder: Path) -> None:
    """Mark a new folder as written by nemo-trt."""
    text = f"Written by nemo-trt {__version__}, which may replace this folder with --force.\n"
    (folder / MARK_FILE).write_text(text, encoding="utf-8")


def require_free_name(dest: Path, *, force: bool, archive: bool = False) -> None:
    """Refuse a target that exists, unless nemo-trt wrote it and `force` is given.

    Args:
        archive: the target is a .nemo file, not a folder.

    Raises:
        ExportError: the target exists and may not be replaced, or cannot be written.
    """
    atomic.require_writable(dest)
    if not dest.exists() and not dest.is_symlink():
        return
    if not force:
        raise ExportError(f"{dest} must not exist yet. Use --force to replace it.")
    if dest.exists() and not (_is_our_archive(dest) if archive else (dest / MARK_FILE).is_file()):
        raise ExportError(
            f"{dest} must be {'an archive' if archive else 'a checkpoint'} that nemo-trt wrote for "
            "--force to replace it, got something else. Remove it yourself, or choose another name."
        )


def _is_our_archive(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        config = open_archive(path).get(_CONFIG)
    except CheckpointError:
        return False
    if config is None:
        return False
    with config.open() as file:
        return file.read(len(MARK_LINE)) == MARK_LINE
