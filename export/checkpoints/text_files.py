"""JSON objects from checkpoints, read with suspicion."""

import json
from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; see `parse_json`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        CheckpointError: the bytes are no UTF-8, no JSON, no object, or name a key twice.
    """
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} must be JSON in UTF-8: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} must hold a JSON object, got {type(found).__name__}.")
    return found


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} stands twice")
        found[key] = value
    return found
