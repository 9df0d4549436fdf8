"""Reads NVIDIA NeMo's checkpoints in place: `.nemo` archives of NeMo 1, and folders of NeMo 2.

Weights are found by content: torch_dist (`.metadata`), zarr (`.zarray`), or model_weights.ckpt of
torch.save, one or one a tensor- and pipeline-parallel rank. No NeMo or Megatron is imported.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError
from nemo_trt.shown import shown
from nemo_trt.tensors import LazyTensor

from .archive import is_archive, open_archive
from .blob import Blob
from .checkpoint import Checkpoint
from .derived import joined, row_range
from .fields import Fields
from .nemo_config import parse_nemo_config
from .nemo_names import EMBEDDING, FC1, FC2, HEAD, PROJ, QKV, canonical, head_dim_of, mcore_names
from .text_files import parse_yaml
from .tokenizer_files import TEKKEN, TEKKEN_BOS, TEKKEN_EOS, TokenizerFile, tekken_of_vocabulary
from .torch_dist import METADATA, read_torch_dist
from .torch_zip import read_torch_zip
from .zarr import ZARRAY, read_zarr

CONFIG_1 = "model_config.yaml"
CONFIG_2 = "context/model.yaml"
CKPT = "model_weights.ckpt"
_RANK = re.compile(r"^(?:mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+))/model_weights\.ckpt$")
_ACROSS_COLUMNS = (PROJ, FC2)  # row-parallel products: each rank has some input columns
_ACROSS_ROWS = (EMBEDDING, HEAD, QKV)
_TEKKEN_VOCABULARY = 131072
_TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    TEKKEN,
)


def recognises(path: Path) -> bool:
    """Whether `path` is a tar or gzip file, or a folder with a config of NeMo 1 or 2."""
    if path.is_dir():
        return (path / CONFIG_1).is_file() or (path / CONFIG_2).is_file()
    return is_archive(path)


def read(path: Path) -> Checkpoint:
    """Read the config and what says where the weights lie.

    Raises:
        CheckpointError: a file is missing, damaged, hostile or not supported.
    """
    files = open_archive(path)
    where = str(path)
    name = CONFIG_1 if CONFIG_1 in files else CONFIG_2
    if name not in files:
        raise CheckpointError(f"{path} must hold {CONFIG_1} or {CONFIG_2}, got neither.")
    raw = parse_yaml(files[name].contents(2**24), files[name].label)
    inner = raw.get("config", raw) if name == CONFIG_2 else raw
    if not isinstance(inner, dict):
        raise CheckpointError(f"config in {files[name].label} must be a mapping.")
    tensors = _weights(files, inner, where)
    config = _config(inner, tensors, files[name].label)
    tokenizer = _tokenizer(files, raw)
    if any(file.name == TEKKEN for file in tokenizer):
        config = replace(config, bos_token_id=TEKKEN_BOS, eos_token_ids=TEKKEN_EOS)
    return Checkpoint(
        path=path,
        format="nemo",
        config=config,
        tensors=canonical(tensors, config, where),
        tokenizer_files=tokenizer,
    )


def _config(raw: dict[str, Any], tensors: Mapping[str, LazyTensor], where: str) -> ModelConfig:
    fields = Fields(raw, where)
    heads = fields.integer("num_attention_heads")
    given = raw.get("num_query_groups")
    groups = heads if given is None else fields.integer("num_query_groups")
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{where} lacks {EMBEDDING}.")
    rows = tensors[EMBEDDING].shape[0]
    stated = next((raw[n] for n in ("vocab_size", "override_vocab_size") if raw.get(n)), None)
    if stated is None:  # NeMo takes it from the tokenizer and pads it; Tekken's needs no padding
        stated = min(rows, _TEKKEN_VOCABULARY)
    if not isinstance(stated, int) or isinstance(stated, bool):
        raise fields.error("vocab_size", "must be a positive integer")
    return parse_nemo_config(
        raw,
        where,
        head_dim=head_dim_of(tensors, heads, groups, where),
        vocab_size=stated,
        tied=HEAD not in tensors,
    )


def _weights(
    files: Mapping[str, Blob], raw: dict[str, Any], where: str
) -> Mapping[str, LazyTensor]:
    """All tensors by Megatron-core's names, whatever form they lie in."""
    for folder in ("model_weights/", "weights/", ""):
        if f"{folder}{METADATA}" in files:
            return mcore_names(read_torch_dist(files, folder), where)
        if any(n.startswith(folder) and n.endswith(f"/{ZARRAY}") for n in files):
            return mcore_names(read_zarr(files, folder), where)
    ranks: dict[tuple[int, int], Mapping[str, LazyTensor]] = {}
    for name, blob in files.items():
        match = _RANK.match(name)
        if match or name == CKPT:
            tensor_rank = int((match and (match[1] or match[2])) or 0)
            pipeline_rank = int((match and match[3]) or 0)
            ranks[pipeline_rank, tensor_rank] = _state(blob)
    if not ranks:
        raise CheckpointError(
            f"{where} must hold its weights as model_weights/ (torch_dist or zarr) or {CKPT}, got "
            "neither. Fetch it again."
        )
    return _joined_ranks(ranks, raw, where)


def _state(blob: Blob) -> Mapping[str, LazyTensor]:
    """The tensors of a state_dict."""
    found = read_torch_zip(blob)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise CheckpointError(f"{blob.label} must hold a state_dict, got {type(found).__name__}.")
    tensors = {
        str(name): replace(value, name=str(name))
        for name, value in found.items()
        if isinstance(value, LazyTensor)
    }
    return mcore_names(tensors, blob.label)


def _joined_ranks(
    ranks: Mapping[tuple[int, int], Mapping[str, LazyTensor]], raw: dict[str, Any], where: str
) -> Mapping[str, LazyTensor]:
    """Whole tensors: ranks joined along their axis, layers of later stages counted on."""
    stages = 1 + max(stage for stage, _ in ranks)
    width = 1 + max(rank for _, rank in ranks)
    every_rank = ((s, r) for s in range(stages) for r in range(width))
    missing = next((one for one in every_rank if one not in ranks), None)
    if missing:
        raise CheckpointError(
            f"{where} lacks the weights of tensor rank {missing[1]}, pipeline rank {missing[0]}. "
            "Fetch them."
        )
    for name, count in (
        ("pipeline_model_parallel_size", stages),
        ("tensor_model_parallel_size", width),
    ):
        if raw.get(name) not in (None, count):
            raise CheckpointError(
                f"{name} in {where} must be {count}, the ranks that are there, got "
                f"{shown(raw[name])}."
            )
    whole: dict[str, LazyTensor] = {}
    first_layer = 0
    for stage in range(stages):
        every = [ranks[stage, rank] for rank in range(width)]
        layers = set()
        for name in every[0]:
            match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
            target, leaf = name, name
            if match:
                layers.add(int(match[1]))
                leaf = match[2]
                target = f"decoder.layers.{first_layer + int(match[1])}.{leaf}"
            if any(name not in one for one in every):
                raise CheckpointError(f"{where} lacks {name} in one of its tensor ranks.")
            if target in whole and target not in (EMBEDDING, HEAD):
                raise CheckpointError(f"{where} holds {target} in two pipeline ranks.")
            if target not in whole:  # a tied embedding lies in the first and in the last stage
                whole[target] = _one(target, leaf, [one[name] for one in every], where)
        first_layer += len(layers)
    return whole


def _one(name: str, leaf: str, parts: list[LazyTensor], where: str) -> LazyTensor:
    if len(parts) == 1:
        return parts[0]
    if leaf == FC1:  # each rank has its own gate above its own up
        if any(part.shape[0] % 2 for part in parts):
            raise CheckpointError(f"{name} in {where} must have an even number of rows a rank.")
        halves = [part.shape[0] // 2 for part in parts]
        gates = [row_range(name, part, 0, half) for part, half in zip(parts, halves, strict=True)]
        ups = [
            row_range(name, part, half, 2 * half) for part, half in zip(parts, halves, strict=True)
        ]
        return joined(name, [*gates, *ups], 0, where)
    if leaf in _ACROSS_COLUMNS:
        return joined(name, parts, 1, where)
    if leaf in _ACROSS_ROWS:
        return joined(name, parts, 0, where)
    if any(part.shape != parts[0].shape for part in parts):
        raise CheckpointError(f"{name} in {where} must be the same in all ranks.")
    return parts[0]


def _tokenizer(files: Mapping[str, Blob], raw: dict[str, Any]) -> tuple[TokenizerFile, ...]:
    """Tekken's vocabulary of an archive, or the tokenizer files that lie in it."""
    section = raw.get("tokenizer")
    section = section if isinstance(section, dict) else {}
    named = [section.get(key) for key in ("vocab_file", "model")]
    wanted = [str(value).removeprefix("nemo:") for value in named if isinstance(value, str)]
    for name, blob in files.items():
        if name in wanted and name.endswith(".json"):
            return (_tekken(blob),)
    found: dict[str, TokenizerFile] = {}
    for name, blob in files.items():
        base = re.sub(r"^[0-9a-f]{32}_", "", PurePosixPath(name).name)
        if base in _TOKENIZER_NAMES and base not in found:
            found[base] = TokenizerFile(name=base, path=None, contents=_reader(blob))
    return tuple(found.values())


def _tekken(blob: Blob) -> TokenizerFile:
    """A tekken.json: NeMo keeps the vocabulary's list alone, other tools the whole file."""
    with blob.open() as file:
        bare = file.read(64).lstrip().startswith(b"[")
    if bare:
        return tekken_of_vocabulary(_reader(blob), blob.label)
    return TokenizerFile(name=TEKKEN, path=None, contents=_reader(blob))


def _reader(blob: Blob) -> Any:
    return lambda: blob.contents(2**28)
