"""Writes the Hugging Face format: config.json and safetensors in files of at most 5 GB."""

import json
import math
from pathlib import Path
from typing import Any

from nemo_trt.config import ModelConfig
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.export.weights import write_tensors
from nemo_trt.precision import DType
from nemo_trt.progress import Progress

SHARD_BYTES = 5_000_000_000
_DTYPE_NAMES = {DType.BF16: "bfloat16", DType.FP16: "float16", DType.FP32: "float32"}


def write(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Write config, index where there are several files, and weights into `folder`."""
    sizes = {name: tensor.num_bytes for name, tensor in checkpoint.tensors.items()}
    files = shards([(name, sizes[name]) for name, _ in checkpoint.config.tensors()])
    progress.phase("write the weights", checkpoint.num_bytes, "bytes")
    for file, names in files.items():
        write_tensors([checkpoint.tensors[name] for name in names], folder / file, progress)
    write_index(files, checkpoint.num_bytes, folder)
    matrices = {t.dtype for t in checkpoint.tensors.values() if len(t.shape) == 2}
    dtype = matrices.pop() if len(matrices) == 1 else DType.FP32
    write_json(folder / "config.json", hf_config(checkpoint.config, dtype))


def shards(sizes: list[tuple[str, int]]) -> dict[str, list[str]]:
    """File -> the tensors in it, in order, at most SHARD_BYTES a file where that can be."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, num_bytes in sizes:
        if filled and filled + num_bytes > SHARD_BYTES:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += num_bytes
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {
        f"model-{number:05d}-of-{len(parts):05d}.safetensors": part
        for number, part in enumerate(parts, start=1)
    }


def write_index(files: dict[str, list[str]], num_bytes: int, folder: Path) -> None:
    """Write the index that several files need."""
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def hf_config(config: ModelConfig, dtype: DType = DType.BF16) -> dict[str, Any]:
    """The config.json of a model."""
    ends = list(config.eos_token_ids)
    return {
        "architectures": [config.architecture],
        "model_type": config.architecture.removesuffix("ForCausalLM").lower(),
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "sliding_window": None,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "dtype": _DTYPE_NAMES[dtype],
    }


def num_bytes_of(config: ModelConfig, dtype: DType) -> list[tuple[str, int]]:
    """Every tensor and its size in one dtype."""
    return [(name, math.prod(shape) * dtype.itemsize) for name, shape in config.tensors()]


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
