"""Reads a Hugging Face checkpoint: config.json beside one safetensors file or sharded ones."""

from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.safetensors import read_layout
from nemo_trt.shown import shown
from nemo_trt.tensors import TensorRef

from .checkpoint import Checkpoint
from .fp8 import (
    StoredScales,
    block_size,
    dequantised,
    quantization_of,
    refused,
    require_no_fp8,
    split_off_scales,
)
from .hf_config import parse_config
from .hf_names import without_prefixes, without_tied_head
from .text_files import read_json
from .tokenizer_files import in_folder

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
RANDOM_WEIGHTS = "random_weights"
"""Field of config.json: true in checkpoints that this project seeded."""
# Buffers that old checkpoints carry and everybody computes anew.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"


def recognises(path: Path) -> bool:
    """Whether `path` is a folder with a config.json, not one for Mistral's own files alone."""
    if not (path / CONFIG).is_file():
        return False
    ours = (path / INDEX).is_file() or (path / SINGLE).is_file()
    return ours or not (path / "params.json").is_file()


def read(path: Path, *, dequantise: bool = False, keep_fp8: bool = False) -> Checkpoint:
    """Read headers and config; the index, where there is one, says which files count.

    Args:
        dequantise: read FP8 weights as BF16 ones.
        keep_fp8: read FP8 weights as the codes that they are.

    Raises:
        CheckpointError: a file is missing, damaged or not supported.
    """
    raw = read_json(path / CONFIG)
    quantization = quantization_of(raw, path)
    if quantization is not None and not dequantise and not keep_fp8:
        raise refused(quantization["described"], path)
    generation: dict[str, Any] = {}
    if (path / GENERATION_CONFIG).is_file():
        generation = read_json(path / GENERATION_CONFIG)
    config = parse_config(raw, generation, path / CONFIG)
    if (path / INDEX).is_file():
        tensors = _read_shards(path)
    elif (path / SINGLE).is_file():
        tensors = read_layout(path / SINGLE)
    else:
        pickled = sorted(file.name for file in path.glob("*.bin"))
        raise CheckpointError(
            f"{path} must hold {SINGLE} or {INDEX}, got neither"
            + (
                f" but {pickled[0]}, a pickle, which is not read. Convert it: load the model with "
                "transformers and save_pretrained it."
                if pickled
                else ". Fetch the checkpoint again."
            )
        )
    kept = {n: ref for n, ref in tensors.items() if not n.endswith(_IGNORED_SUFFIX)}
    files = tuple(sorted({ref.path for ref in kept.values()}))
    weights = without_prefixes(dict(kept))
    if weights.keys() != kept.keys():
        files = ()  # their names are not those of a bundle: the weights are written anew
    weights = without_tied_head(weights, config, path)
    if quantization is None:
        require_no_fp8(weights, path)
    scales: dict[str, StoredScales] = {}
    if quantization is not None and dequantise:
        weights, files = dequantised(weights, block_size(quantization), path), ()
    elif quantization is not None:
        weights, scales = split_off_scales(weights, path)
    return Checkpoint(
        path=path,
        format="hf",
        config=config,
        fp8=scales,
        fp8_kind=quantization["described"] if quantization is not None else "",
        dequantised=quantization is not None and dequantise,
        tensors=weights,
        random_weights=raw.get(RANDOM_WEIGHTS) is True,
        tokenizer_files=in_folder(path),
        weight_files=files,
    )


def _read_shards(path: Path) -> dict[str, TensorRef]:
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / INDEX} must map tensors to files under weight_map.")
    tensors: dict[str, TensorRef] = {}
    for shard in sorted({str(file) for file in weight_map.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path / INDEX} must name safetensors files of its own folder, got {shown(shard)}."
            )
        if not (path / shard).is_file():
            raise CheckpointError(
                f"{path / INDEX} names {shown(shard)}, which {path} lacks. Fetch that file."
            )
        for name, ref in read_layout(path / shard).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{path / shard} holds {name}, which {INDEX} "
                    + (
                        f"places in {shown(weight_map[name])}."
                        if name in weight_map
                        else "does not name."
                    )
                )
            tensors[name] = ref
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{path / shard} must hold {name} by {INDEX}, got none.")
    return tensors
