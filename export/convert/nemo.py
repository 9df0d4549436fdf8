"""Writes a `.nemo` archive of NeMo 1: a tar with model_config.yaml and PyTorch's torch_dist.

Layers are stacked on a first axis, a chunk a layer: Megatron's homogeneous checkpoint.
"""

import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nemo_trt.config import ModelConfig
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.export.checkpoints.derived import gathered, joined
from nemo_trt.export.checkpoints.nemo_names import EMBEDDING, FC1, FC2, HEAD, PROJ, QKV, qkv_index
from nemo_trt.export.checkpoints.tokenizer_files import TEKKEN
from nemo_trt.export.weights import pieces
from nemo_trt.export.written import MARK_LINE
from nemo_trt.precision import DType
from nemo_trt.progress import Progress
from nemo_trt.tensors import LazyTensor

_DATA = "__0_0.distcp"
_BLOCK = tarfile.BLOCKSIZE
_TORCH = {
    DType.BF16: (torch.bfloat16, torch.BFloat16Storage),
    DType.FP16: (torch.float16, torch.HalfStorage),
    DType.FP32: (torch.float32, torch.FloatStorage),
}


def write(checkpoint: Checkpoint, path: Path, progress: Progress) -> None:
    """Write the archive in one pass over the weights."""
    progress.phase("write the weights", checkpoint.num_bytes, "bytes")
    config = model_config(checkpoint.config)
    with path.open("w+b") as file:
        for name, data in _tokenizer(checkpoint, config):
            _add(file, name, data)
        _add(file, "model_config.yaml", _yaml(config))
        header = file.tell()
        file.write(bytes(_BLOCK))  # the length is known when all is written
        metadata = _write_data(checkpoint, file, progress)
        _close_member(file, header, f"model_weights/{_DATA}")
        _add(file, "model_weights/.metadata", pickle.dumps(metadata))
        backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        _add(file, "model_weights/metadata.json", json.dumps(backend).encode())
        common = io.BytesIO()
        torch.save({}, common)
        _add(file, "model_weights/common.pt", common.getvalue())
        file.write(bytes(2 * _BLOCK))


def model_config(config: ModelConfig) -> dict[str, Any]:
    """The model_config.yaml of a model."""
    return {
        "mcore_gpt": True,
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_query_groups": config.num_kv_heads,
        "kv_channels": config.head_dim,
        "encoder_seq_length": config.max_position_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "normalization": "rmsnorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "activation": "fast-swiglu",
        "bias": False,
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_base": config.rope_theta,
        "share_embeddings_and_output_weights": config.tied_head,
        "vocab_size": config.vocab_size,
        "make_vocab_size_divisible_by": 1,
        "transformer_engine": True,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "tokenizer": {"library": "huggingface", "type": None, "vocab_file": None},
    }


def _tokenizer(checkpoint: Checkpoint, config: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The tokenizer's files as NeMo names them; of Tekken, the vocabulary's list alone."""
    for file in checkpoint.tokenizer_files:
        data = file.contents()
        if file.name == TEKKEN:
            data = json.dumps(json.loads(data)["vocab"]).encode()
        name = f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}_{file.name}"
        if file.name == TEKKEN:
            config["tokenizer"] = {
                "library": "tiktoken",
                "type": None,
                "vocab_file": f"nemo:{name}",
            }
        yield name, data


def _yaml(config: dict[str, Any]) -> bytes:
    import yaml

    return MARK_LINE + b"\n" + yaml.safe_dump(config, sort_keys=False).encode()


def _stacks(checkpoint: Checkpoint) -> Iterator[tuple[str, list[LazyTensor] | LazyTensor]]:
    """Megatron-core's name -> a tensor, or one a layer."""
    tensors, config = checkpoint.tensors, checkpoint.config
    order = np.argsort(np.concatenate(list(qkv_index(config).values())))
    where = str(checkpoint.path)

    def layer(index: int, leaf: str) -> LazyTensor:
        return tensors[f"model.layers.{index}.{leaf}.weight"]

    def qkv(index: int) -> LazyTensor:
        parts = [layer(index, f"self_attn.{p}_proj") for p in "qkv"]
        return gathered(QKV, joined(QKV, parts, 0, where), order.astype(np.int64))

    def fc1(index: int) -> LazyTensor:
        return joined(FC1, [layer(index, f"mlp.{p}_proj") for p in ("gate", "up")], 0, where)

    yield EMBEDDING, tensors["model.embed_tokens.weight"]
    for leaf, make in (
        ("self_attention.linear_qkv.layer_norm_weight", lambda i: layer(i, "input_layernorm")),
        (QKV, qkv),
        (PROJ, lambda i: layer(i, "self_attn.o_proj")),
        ("mlp.linear_fc1.layer_norm_weight", lambda i: layer(i, "post_attention_layernorm")),
        (FC1, fc1),
        (FC2, lambda i: layer(i, "mlp.down_proj")),
    ):
        yield f"decoder.layers.{leaf}", [make(i) for i in range(config.num_layers)]
    yield "decoder.final_layernorm.weight", tensors["model.norm.weight"]
    if not config.tied_head:
        yield HEAD, tensors["lm_head.weight"]


def _write_data(checkpoint: Checkpoint, file: BinaryIO, progress: Progress) -> Metadata:
    """Write every chunk as a file of torch.save, and say where each is."""
    state: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    start = file.tell()
    for name, found in _stacks(checkpoint):
        parts = found if isinstance(found, list) else [found]
        stacked = isinstance(found, list)
        key = f"model.{name}"
        chunks = []
        for index, part in enumerate(parts):
            shape = (1, *part.shape) if stacked else part.shape
            offsets = torch.Size([index, *[0] * len(part.shape)] if stacked else [0] * len(shape))
            at = file.tell()
            _save(part, shape, file, progress)
            chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(shape)))
            storage[MetadataIndex(key, offsets, index)] = _StorageInfo(
                _DATA, at - start, file.tell() - at
            )
        size = (len(parts), *parts[0].shape) if stacked else parts[0].shape
        state[key] = TensorStorageMetadata(
            properties=TensorProperties(dtype=_TORCH[parts[0].dtype][0]),
            size=torch.Size(size),
            chunks=chunks,
        )
    return Metadata(state_dict_metadata=state, storage_data=storage)


class _Storage:
    """Stands for the bytes of a tensor in a pickle."""


class _Tensor:
    """Pickles as PyTorch pickles a tensor whose bytes are entry 0."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __reduce__(self) -> Any:
        stride = torch.empty(self.shape, device="meta").stride()
        hooks: OrderedDict[str, Any] = OrderedDict()
        arguments = (_Storage(), 0, self.shape, stride, False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments


def _save(tensor: LazyTensor, shape: tuple[int, ...], file: BinaryIO, progress: Progress) -> None:
    """What torch.save would write, streamed."""
    count = tensor.num_bytes // tensor.dtype.itemsize
    identity = ("storage", _TORCH[tensor.dtype][1], "0", "cpu", count)

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return identity if isinstance(item, _Storage) else None

    data = io.BytesIO()
    Pickler(data, protocol=2).dump(_Tensor(shape))
    target: Any = _From(file, file.tell())
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, text in (("data.pkl", data.getvalue()), ("byteorder", b"little")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), text)
        entry = zipfile.ZipInfo("archive/data/0")
        entry.file_size = tensor.num_bytes
        with archive.open(entry, "w", force_zip64=tensor.num_bytes >= 2**31) as storage:
            for piece in pieces([tensor], lambda t, a, b: t.rows(a, b), progress):
                storage.write(piece)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


class _From:
    """A file seen from a position on, which is its start."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start
        self.write, self.flush = file.write, file.flush

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = 0) -> int:
        base = self._start if whence == 0 else 0
        return self._file.seek(base + offset, whence) - self._start


def _add(file: BinaryIO, name: str, data: bytes) -> None:
    header = file.tell()
    file.write(bytes(_BLOCK))
    file.write(data)
    _close_member(file, header, name)


def _close_member(file: BinaryIO, header: int, name: str) -> None:
    """Write the header of a member that ends here, and fill its last block."""
    end = file.tell()
    info = tarfile.TarInfo(f"./{name}")
    info.size = end - header - _BLOCK
    file.write(bytes(-info.size % _BLOCK))
    block = info.tobuf(tarfile.GNU_FORMAT)
    assert len(block) == _BLOCK
    file.seek(header)
    file.write(block)
    file.seek(0, io.SEEK_END)
