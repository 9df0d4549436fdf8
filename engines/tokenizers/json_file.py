"""Reads the JSON files of a tokenizer, which anybody may have written."""

import json
from pathlib import Path
from typing import Any

from nemo_trt.errors import BundleError, CheckpointError
from nemo_trt.lfs import require_content
from nemo_trt.shown import said, shown
from nemo_trt.utf8 import undecodable

_MOST_BYTES = 2**28
_MOST_TEMPLATE_BYTES = 2**20
MOST_CHARACTERS = 2**13
_LOOKED_UP = ("vocab", "merges")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleError: the file is a Git LFS pointer, too large, not UTF-8, not JSON or no object.
    """
    try:
        text = _text(path, _MOST_BYTES)
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} must be JSON in UTF-8: {said(error)}.") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} must hold a JSON object, got {type(found).__name__}.")
    if "\\ud" in text.lower() and undecodable(found) is not None:
        raise BundleError(f"{path} must hold text that UTF-8 can hold, got half a surrogate pair.")
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


def require_short_texts(layout: dict[str, Any], path: Path) -> None:
    """Refuse a tokenizer.json with long texts: one may be put into a prompt for every character.

    The vocabulary, its merges and SentencePiece's table of characters are only looked up.

    Raises:
        BundleError: there is one.
    """
    waiting: list[Any] = [{**layout, "model": None}]
    if isinstance(model := layout.get("model"), dict):
        waiting.append({name: one for name, one in model.items() if name not in _LOOKED_UP})
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and len(one) > MOST_CHARACTERS:
            raise BundleError(
                f"Texts in {path} must have at most {MOST_CHARACTERS} characters, got {shown(one)}."
            )
        if isinstance(one, dict):
            waiting += [value for name, value in one.items() if name != "precompiled_charsmap"]
            waiting += list(one)
        elif isinstance(one, list):
            waiting += one


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
