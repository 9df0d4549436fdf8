"""Where a bundle may be written, and where its weight files lie."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_trt import atomic
from nemo_trt.errors import ExportError
from nemo_trt.manifest import MANIFEST_FILE, WEIGHTS_FOLDER, WeightsMode, is_bundle

from .checkpoints import Checkpoint


def require_target(bundle: Path, weights: WeightsMode, force: bool) -> None:
    """Raise an ExportError unless a bundle may be written there."""
    atomic.require_writable(bundle / MANIFEST_FILE if weights == "in-place" else bundle)
    if weights == "in-place":
        if is_bundle(bundle) and not force:
            raise ExportError(f"{bundle} must not hold a bundle yet. Use --force to replace it.")
    elif bundle.exists() or bundle.is_symlink():
        if not force:
            raise ExportError(f"{bundle} must not exist yet. Use --force to replace it.")
        if bundle.exists() and not _is_ours(bundle):
            raise ExportError(
                f"{bundle} must be a bundle for --force to replace it, got something else. "
                "Choose another folder."
            )
        if bundle.exists() and _is_in_place(bundle):
            raise ExportError(
                f"{bundle} holds a bundle made in place, beside its checkpoint. "
                "Choose another folder, so that the checkpoint stays."
            )


def _is_ours(bundle: Path) -> bool:
    """Whether a folder is a bundle, of any version of nemo-trt."""
    return is_bundle(bundle) and {"bundle_id", "weights_mode"} <= _manifest(bundle).keys()


def _is_in_place(bundle: Path) -> bool:
    """Whether an existing bundle's weights are a checkpoint's own files."""
    return bool(_manifest(bundle)["weights_mode"] != "copy")


def _manifest(bundle: Path) -> dict[str, Any]:
    """A manifest of any version; an empty one when there is none that can be read."""
    try:
        found = json.loads((bundle / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def weight_locations(
    checkpoint: Checkpoint, bundle: Path, weights: WeightsMode
) -> dict[Path, PurePosixPath]:
    """Weight file -> its path relative to the bundle."""
    if weights == "in-place" and not checkpoint.weight_files:
        raise ExportError(
            f"--weights must be copy for a checkpoint of the format {checkpoint.format}: a graph "
            "cannot point into it, its weights are written anew."
        )
    if weights == "copy":
        return {path: PurePosixPath(WEIGHTS_FOLDER, path.name) for path in checkpoint.weight_files}
    found = {}
    for path in checkpoint.weight_files:
        if path.is_symlink():
            raise ExportError(
                f"{path} is a symbolic link, which ONNX Runtime refuses for weights. "
                "Use --weights copy."
            )
        found[path] = relative_to_bundle(path, bundle)
    return found


def relative_to_bundle(path: Path, bundle: Path) -> PurePosixPath:
    try:
        return PurePosixPath(path.resolve().relative_to(bundle.resolve()).as_posix())
    except ValueError as error:
        raise ExportError(
            f"With --weights in-place BUNDLE must be {path.parent} or a folder above it, got "
            f"{bundle}: a graph cannot point outside its folder."
        ) from error
