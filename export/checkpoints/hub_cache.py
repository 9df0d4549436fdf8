"""Finds the snapshot in a folder of the Hugging Face cache (`models--ORG--NAME`).

Source: the cache's layout as huggingface_hub documents it. `refs/main` holds the revision of the
main branch, and `snapshots/REVISION` links to the files.
"""

from pathlib import Path

from nemo_trt.errors import CheckpointError
from nemo_trt.shown import shown

_MAX_REVISION_BYTES = 1024


def in_snapshot(path: Path) -> Path:
    """The snapshot that a cache folder's `refs/main` names, or its only one; any other path as is.

    Raises:
        CheckpointError: the folder has no snapshot, lacks the one that `refs/main` names, or has
            several and no `refs/main`.
    """
    snapshots = path / "snapshots"
    if not snapshots.is_dir() or not any((path / name).is_dir() for name in ("refs", "blobs")):
        return path
    found = {one.name: one for one in sorted(snapshots.iterdir()) if one.is_dir()}
    what = f"{path}, a model's folder in the Hugging Face cache,"
    if not found:
        raise CheckpointError(f"{what} must hold a snapshot, got none. Download the model again.")
    main = _main_revision(path / "refs" / "main")
    if main is None and len(found) > 1:
        raise CheckpointError(
            f"{what} must have refs/main where it has several snapshots. Name one of them: "
            f"{_listed(found)}."
        )
    revision = next(iter(found)) if main is None else main
    if revision not in found:
        raise CheckpointError(
            f"{what} must hold the snapshot that refs/main names, {shown(revision)}, got "
            f"{len(found)} other. Download the model again, or name a snapshot: {_listed(found)}."
        )
    return found[revision]


def _main_revision(path: Path) -> str | None:
    """What `refs/main` holds, if it is there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(_MAX_REVISION_BYTES).decode(errors="replace").strip()


def _listed(found: dict[str, Path]) -> str:
    return " or ".join(str(one) for one in list(found.values())[:3])
