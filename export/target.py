"""Where a bundle may be written, and where its weight files lie: all that stops an export early."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_trt import atomic
from nemo_trt.errors import ExportError
from nemo_trt.manifest import (
    GRAPH_FILE,
    MANIFEST_FILE,
    NEXT_MANIFEST_FILE,
    WEIGHTS_FOLDER,
    WeightsMode,
    is_bundle,
)
from nemo_trt.precision import DType
from nemo_trt.quantization import Quantization
from nemo_trt.utf8 import undecodable

from .checkpoints import Checkpoint
from .quantization.weights import num_fp8_bytes

_GRAPH_BYTES = 64 * 2**20  # a generous bound of graph, manifest and tokenizer
_NO_COPY = (
    "A Hugging Face checkpoint can be exported without a copy of its weights: --weights in-place."
)
_MANIFESTS = (MANIFEST_FILE, NEXT_MANIFEST_FILE)


def require_target(
    checkpoint: Checkpoint,
    bundle: Path,
    *,
    precision: DType,
    weights: WeightsMode,
    force: bool,
    quantization: Quantization | None = None,
) -> dict[Path, PurePosixPath]:
    """Refuse, before any work, a target that the bundle could not be written to after it.

    Args:
        quantization: of FP8; None where it is still to be made: the least that it takes is asked
            of the disk.

    Returns:
        Weight file -> its path relative to the bundle.

    Raises:
        ExportError: the target exists and may not be replaced, cannot be written, lies on a full
            disk, or does not suit `weights`.
    """
    if undecodable(str(bundle.absolute())) is not None:
        raise ExportError(
            f"{bundle} must have a name in UTF-8, its folders too: ONNX reads no other. Choose "
            "another target."
        )
    _require_replaceable(bundle, weights, force)
    quantised = precision is DType.FP8 and not checkpoint.fp8
    if quantised and weights == "in-place":
        raise ExportError("--weights must be copy for FP8: the weights are written anew.")
    locations = _weight_locations(checkpoint, bundle, weights)
    if quantised:
        num_bytes = num_fp8_bytes(checkpoint, quantization)
    elif weights == "in-place":
        num_bytes = 0
    else:
        num_bytes = checkpoint.num_file_bytes or checkpoint.num_bytes
    atomic.require_free_disk(bundle, _GRAPH_BYTES + num_bytes, _NO_COPY)
    return locations


def _require_replaceable(bundle: Path, weights: WeightsMode, force: bool) -> None:
    atomic.require_writable(bundle / MANIFEST_FILE if weights == "in-place" else bundle)
    if weights == "in-place":
        _require_place(bundle, force)
    else:
        require_replaceable(bundle, force)


def require_replaceable(bundle: Path, force: bool) -> None:
    """Refuse a folder that exists, unless it is a bundle of copied weights and `force` is given.

    Raises:
        ExportError: it may not be replaced.
    """
    if not (bundle.exists() or bundle.is_symlink()):
        return
    if not force:
        raise ExportError(f"{bundle} must not exist yet. Use --force to replace it.")
    if bundle.exists() and not (is_bundle(bundle) and _is_ours(bundle)):
        raise ExportError(
            f"{bundle} must be a bundle for --force to replace it, got something else. "
            "Choose another folder."
        )
    if bundle.exists() and _is_in_place(bundle):
        raise ExportError(
            f"{bundle} holds a bundle made in place, beside its checkpoint. "
            "Choose another folder, so that the checkpoint stays."
        )


def _require_place(bundle: Path, force: bool) -> None:
    """Refuse a folder whose graph or manifest is not a bundle's, or is one's without `force`."""
    graph = bundle / GRAPH_FILE
    if is_bundle(bundle) and _is_ours(bundle):
        if not force and graph.exists():  # else a run was killed before its graph had its name
            raise ExportError(f"{bundle} must not hold a bundle yet. Use --force to replace it.")
        return
    for path in (graph, *(bundle / name for name in _MANIFESTS)):
        if path.exists() or path.is_symlink():
            raise ExportError(
                f"{path} would be replaced and was not written by nemo-trt. Move it away, or use "
                "--weights copy."
            )


def _is_ours(bundle: Path) -> bool:
    """Whether the manifests of a folder, one at least, are those of a bundle of any version."""
    return all(
        {"bundle_id", "weights_mode"} <= _manifest(bundle / name).keys()
        for name in _MANIFESTS
        if (bundle / name).exists()
    )


def _is_in_place(bundle: Path) -> bool:
    """Whether an existing bundle's weights are a checkpoint's own files."""
    return any(
        _manifest(bundle / name)["weights_mode"] != "copy"
        for name in _MANIFESTS
        if (bundle / name).exists()
    )


def _manifest(path: Path) -> dict[str, Any]:
    """A manifest of any version; an empty one when there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _weight_locations(
    checkpoint: Checkpoint, bundle: Path, weights: WeightsMode
) -> dict[Path, PurePosixPath]:
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
    """A file's path relative to a bundle.

    Raises:
        ExportError: it lies elsewhere.
    """
    try:
        return PurePosixPath(path.resolve().relative_to(bundle.resolve()).as_posix())
    except ValueError as error:
        raise ExportError(
            f"With --weights in-place BUNDLE must be {path.parent} or a folder above it, got "
            f"{bundle}: a graph cannot point outside its folder."
        ) from error
