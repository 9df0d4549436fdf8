"""Reads the JSON files of a tokenizer, which anybody may have written."""

import json
from pathlib import Path
from typing import Any

from nemo_trt.errors import BundleError, CheckpointError
from nemo_trt.lfs import require_content

_MOST_BYTES = 2**28
_MOST_TEMPLATE_BYTES = 2**20


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleError: the file is a Git LFS pointer, too large, not UTF-8, not JSON or no object.
    """
    try:
        found = json.loads(_text(path, _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} must be JSON in UTF-8: {error}.") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} must hold a JSON object, got {type(found).__name__}.")
    return found


def read_template(path: Path) -> str:
    """Read a file that is one chat template.

    Raises:
        BundleError: the file is a Git LFS pointer, too large or not UTF-8.
    """
    try:
        return _text(path, _MOST_TEMPLATE_BYTES)
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} must be text in UTF-8: {error}.") from error


def _text(path: Path, most_bytes: int) -> str:
    try:
        require_content(path)
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except CheckpointError as error:
        raise BundleError(str(error)) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > most_bytes:
        raise BundleError(f"{path} must be at most {most_bytes} bytes long, got more.")
    return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
