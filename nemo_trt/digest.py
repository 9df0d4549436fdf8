"""Digests that bind a bundle, its weights and a verdict to each other."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemo_trt.progress import Progress, Silent
from nemo_trt.safetensors import read_layout
from nemo_trt.tensors import LazyTensor, row_ranges

SAMPLE_BYTES = 4096


def sha256_file(path: Path) -> str:
    """The sha256 of a whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """The BLAKE3 of a whole file, in hex, by all processors over the mapped file.

    Raises:
        OSError: it cannot be read.
    """
    import blake3

    return blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(path).hexdigest()


def quick_digest(path: Path) -> str:
    """A sha256 over the header and 4 KiB from the start, middle and end of every tensor, in hex.

    It finds a swapped, re-quantised or truncated file after reading about 12 KiB a tensor. It does
    not find one altered number in the middle of a tensor: `file_digest` does.

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


def weights_digest(tensors: Iterable[LazyTensor], progress: Progress | None = None) -> str:
    """A sha256 over name, dtype, shape and every number of tensors in their order, in hex.

    It is the same in every format of one model: pass the tensors in the order of
    `config.tensors()`. Reads all weights, a tensor a processor at a time.

    Raises:
        CheckpointError: the bytes are no longer there.
    """
    progress = progress or Silent()
    every = list(tensors)
    progress.phase("digest the weights", sum(one.num_bytes for one in every), "bytes")

    def line(tensor: LazyTensor) -> str:
        digest = hashlib.sha256()
        for start, stop in row_ranges(tensor):
            rows = tensor.rows(start, stop)
            digest.update(rows.data.cast("B"))
            progress.advance(rows.nbytes)
        return f"{tensor.name} {tensor.dtype} {list(tensor.shape)} {digest.hexdigest()}\n"

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        lines = list(pool.map(line, every))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
