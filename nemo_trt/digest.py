"""Digests that bind a bundle, its weights and a verdict to each other."""

import hashlib
from pathlib import Path

from nemo_trt.safetensors import read_layout

SAMPLE_BYTES = 4096


def sha256_file(path: Path) -> str:
    """The sha256 of a whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quick_digest(path: Path) -> str:
    """A sha256 over the header and 4 KiB from the start, middle and end of every tensor, in hex.

    It finds a swapped, re-quantised or truncated file after reading about 12 KiB a tensor. It does
    not find one altered number in the middle of a tensor: `sha256_file` does.

    Raises:
        CheckpointError: the file is missing or no well-formed safetensors file.
    """
    refs = read_layout(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        first = min((ref.offset for ref in refs.values()), default=0)
        digest.update(file.read(first))
        for ref in refs.values():
            length = min(SAMPLE_BYTES, ref.num_bytes)
            for start in (0, (ref.num_bytes - length) // 2, ref.num_bytes - length):
                file.seek(ref.offset + start)
                digest.update(file.read(length))
    return digest.hexdigest()
