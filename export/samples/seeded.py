"""Writes a seeded random checkpoint of any shape, streamed, with plausible weight scales."""

import math
import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from nemo_trt import atomic, bfloat16
from nemo_trt.config import ModelConfig
from nemo_trt.errors import ExportError
from nemo_trt.export.checkpoints.huggingface import RANDOM_WEIGHTS
from nemo_trt.export.checkpoints.tokenizer_files import TEKKEN, tekken_of_mistral_common
from nemo_trt.export.convert.huggingface import (
    hf_config,
    num_bytes_of,
    shards,
    write_index,
    write_json,
)
from nemo_trt.export.written import mark, require_free_name
from nemo_trt.precision import DType
from nemo_trt.progress import Progress, Silent
from nemo_trt.safetensors import write_stream

NEMO_12B = ModelConfig(
    architecture="MistralForCausalLM",
    num_layers=40,
    hidden_size=5120,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=131072,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    max_position_embeddings=131072,
    tied_head=False,
    bos_token_id=1,
    eos_token_ids=(2,),
)
SHAPES = {
    "nemo-12b": NEMO_12B,
    # Every ratio that is awkward in Nemo stays: head_dim is 0.8 of hidden / heads, 4 query heads a
    # kv head, ffn 2.8 times hidden.
    "nemo-tiny": replace(
        NEMO_12B,
        num_layers=2,
        hidden_size=160,
        intermediate_size=448,
        num_heads=8,
        num_kv_heads=2,
        head_dim=16,
    ),
}
_PIECE = 4 * 2**20  # elements drawn at once; part of what a seed means
_LOGIT_STD = 2.0
_NORM_STD = 0.05
_TEKKEN_VOCAB = 131072


def write_seeded(
    dest: Path,
    shape: ModelConfig,
    *,
    num_layers: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a Hugging Face checkpoint of `shape` in BF16 whose weights depend on `seed` alone.

    Activations keep their scale through any number of layers: projections have variance
    1 / fan-in, those that add to the residual stream 1 / (2 L) of that, and the head gives logits
    of standard deviation 2. A shape with Tekken's vocabulary gets the real Tekken. Memory: a few
    pieces of 8 MB.

    Raises:
        ExportError: `shape` is a name, `dest` exists, or the disk has not enough room.
        MachineError: mistral-common, which carries Tekken, is not installed.
    """
    if not isinstance(shape, ModelConfig):  # a caller that no type checker stops
        raise ExportError(f"shape must be a ModelConfig, got {shape!r}. SHAPES[NAME] holds some.")
    progress = progress or Silent()
    config = replace(shape, num_layers=num_layers or shape.num_layers)
    require_free_name(dest, force=force)
    num_bytes = config.num_parameters * DType.BF16.itemsize
    atomic.require_free_disk(dest, num_bytes + 2**26)
    shapes = dict(config.tensors())
    files = shards(num_bytes_of(config, DType.BF16))
    progress.phase("write seeded weights", num_bytes, "bytes")
    with atomic.new_directory(dest, replace=force) as folder:
        mark(folder)
        for file, names in files.items():
            tensors = [(name, shapes[name]) for name in names]
            layout = [(name, DType.BF16, shape) for name, shape in tensors]
            write_stream(folder / file, layout, _pieces(tensors, config, seed, progress))
        write_index(files, num_bytes, folder)
        write_json(folder / "config.json", hf_config(config) | {RANDOM_WEIGHTS: True})
        if config.vocab_size == _TEKKEN_VOCAB:
            (folder / TEKKEN).write_bytes(tekken_of_mistral_common().read_bytes())


def _pieces(
    tensors: list[tuple[str, tuple[int, ...]]], config: ModelConfig, seed: int, progress: Progress
) -> Iterator[memoryview]:
    """Bytes of the tensors in order, drawn on all cores, a few pieces ahead of the writer."""
    workers = min(os.cpu_count() or 1, 8)
    waiting: deque[Future[NDArray[np.uint16]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for name, dims in tensors:
            mean, std = _distribution(name, dims, config)
            size = math.prod(dims)
            for piece, start in enumerate(range(0, size, _PIECE)):
                count = min(_PIECE, size - start)
                waiting.append(pool.submit(_draw, name, piece, count, mean, std, seed))
                if len(waiting) > 2 * workers:
                    yield _finished(waiting.popleft(), progress)
        while waiting:
            yield _finished(waiting.popleft(), progress)


def _finished(piece: "Future[NDArray[np.uint16]]", progress: Progress) -> memoryview:
    array = piece.result()
    progress.advance(array.nbytes)
    return array.data.cast("B")


def _draw(
    name: str, piece: int, count: int, mean: float, std: float, seed: int
) -> NDArray[np.uint16]:
    """BF16 bits of `count` normal numbers: 16 random bits choose a quantile from a table."""
    source = np.random.SFC64(np.random.SeedSequence((seed, zlib.crc32(name.encode()), piece)))
    bits = np.frombuffer(np.random.Generator(source).bytes(2 * count), np.uint16)
    return np.take(_table(mean, std), bits)


@lru_cache(maxsize=64)
def _table(mean: float, std: float) -> NDArray[np.uint16]:
    return bfloat16.from_float32((_quantiles() * std + mean).astype(np.float32))


@lru_cache(maxsize=1)
def _quantiles() -> NDArray[np.float64]:
    """The 65536 mid-quantiles of the standard normal distribution."""
    inverse = NormalDist().inv_cdf
    half = np.array([inverse((index + 0.5) / 65536) for index in range(32768)])
    return np.concatenate((half, -half[::-1]))


def _distribution(name: str, dims: tuple[int, ...], config: ModelConfig) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's numbers."""
    if len(dims) == 1:
        return 1.0, _NORM_STD
    if name == "model.embed_tokens.weight" and not config.tied_head:
        return 0.0, 1.0
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return 0.0, _LOGIT_STD / math.sqrt(config.hidden_size)
    std = 1 / math.sqrt(dims[1])
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        std /= math.sqrt(2 * config.num_layers)
    return 0.0, std
