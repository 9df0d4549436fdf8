"""Where API keys come from."""

from collections.abc import Mapping
from pathlib import Path

from nemo_trt.errors import RequestError

KEYS_VARIABLE = "NEMO_TRT_API_KEYS"


def read_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys of a file, one a line, and of the environment, with commas.

    Raises:
        RequestError: the file holds none.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    lines += environment.get(KEYS_VARIABLE, "").split(",")
    keys = tuple(line.strip() for line in lines if line.strip())
    if file and not keys:
        raise RequestError(f"{file} must hold at least one API key, a line each, got none.")
    return keys
