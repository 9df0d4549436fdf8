"""What TensorRT-RTX compiles when an engine opens, kept beside its plan for the next time."""

import logging
from pathlib import Path
from typing import Any

import blake3

from nemo_trt import atomic

_LOG = logging.getLogger("nemo_trt.engines")
_DIGEST_BYTES = 32


class RuntimeCache:
    """The runtime cache of one plan, in a file whose name has the plan's digest.

    TensorRT-RTX itself refuses a cache of another version, GPU or older driver; then, and where the
    file is damaged or missing, it compiles, and `keep` replaces the file. The file begins with the
    blake3 digest of what follows.

    Args:
        config: TensorRT's runtime configuration, to which the cache is given.
        plan: the plan's file.
        digest: the plan's digest.
    """

    def __init__(self, config: Any, plan: Path, digest: str) -> None:
        self._path = plan.with_name(f"{plan.stem}-{digest[:16]}.runtime-cache")
        self._cache: Any = config.create_runtime_cache()
        self._stored = self._read()
        if self._stored and not self._cache.deserialize(self._stored):
            _LOG.info("%s is of another TensorRT, GPU or driver: kernels are compiled", self._path)
        if not config.set_runtime_cache(self._cache):
            _LOG.warning("TensorRT takes no runtime cache: every opening compiles its kernels")

    def keep(self) -> None:
        """Write what TensorRT compiled, unless the file has it. A failure is logged: it costs time,
        and nothing else."""
        memory = self._cache.serialize()
        data = bytes(memory) if memory is not None else b""
        if not data or data == self._stored:
            return
        try:
            self._path.parent.stat()  # an engine that was removed stays so
            atomic.write_bytes(self._path, blake3.blake3(data).digest() + data)
        except OSError as error:
            _LOG.warning(
                "%s is not written, the next opening compiles again: %s", self._path, error
            )
        else:
            self._stored = data

    def _read(self) -> bytes:
        try:
            content = self._path.read_bytes()
        except OSError:
            return b""
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if blake3.blake3(data).digest() != digest:
            _LOG.warning("%s is damaged: kernels are compiled again", self._path)
            return b""
        return data
