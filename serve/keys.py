"""The API keys of a server: where they come from."""

import logging
from collections.abc import Mapping
from pathlib import Path

from nemo_trt.errors import RequestError

KEYS_VARIABLE = "NEMO_TRT_API_KEYS"
_log = logging.getLogger("nemo_trt.serve")


def read_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys of a file, one a line, and of the environment, separated by commas.

    A byte order mark, empty lines and lines that begin with # are skipped. A file that other users
    can read is named in the log. Where a file or the variable is given, there must be a key: an
    empty list must not open the server to everybody.

    Raises:
        RequestError: the file is no text, or file or variable hold no key.
    """
    found = _split(environment.get(KEYS_VARIABLE, ""), ",")
    if KEYS_VARIABLE in environment and not found:
        raise RequestError(f"{KEYS_VARIABLE} must hold at least one API key, got none. Unset it.")
    if file is None:
        return tuple(found)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} must be text in UTF-8, got other bytes: {error}.") from error
    listed = [key for key in _split(text, "\n") if not key.startswith("#")]
    if not listed:
        raise RequestError(f"{file} must hold at least one API key, one a line, got none.")
    if file.stat().st_mode & 0o044:
        _log.warning("%s can be read by other users of this machine; chmod 600 it.", file)
    return (*listed, *found)


def _split(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]
