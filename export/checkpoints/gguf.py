"""Reads GGUF files of the llama architecture, which is also what Mistral models are called there.

Quantised weights are dequantised as their rows are read, and rounded to BF16: what they then are is
the model. Converters to GGUF turn q and k into interleaved pairs; here they are turned back.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16
from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError, MachineError
from nemo_trt.precision import DType
from nemo_trt.shown import shown
from nemo_trt.tensors import LazyTensor, TensorRef

from .checkpoint import Checkpoint
from .derived import gathered, half_split_index
from .fields import Fields
from .gguf_file import TYPES, GgufTensor, read_header
from .gguf_tokenizer import tokenizer_of
from .tokenizer_files import in_folder

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NAME = re.compile(r"^(?:blk\.(?P<layer>\d+)\.)?(?P<leaf>[a-z_]+)\.weight$")
_PART = re.compile(r"^(.+)-\d{5}-of-(\d{5})\.gguf$")  # the names that llama-gguf-split gives
_TOKEN_ID = "tokenizer.ggml.{}_token_id"
_PLAIN = {"F32": DType.FP32, "F16": DType.FP16, "BF16": DType.BF16}


def recognises(path: Path) -> bool:
    """Whether `path` is a file that starts like a GGUF file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read(path: Path) -> Checkpoint:
    """Read the header.

    Raises:
        CheckpointError: the file is damaged or not supported.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} must be a .gguf file, got a folder.")
    raw, tensors = read_header(path)
    _require_whole(raw, path)
    config = _config(raw, tensors, path)
    return Checkpoint(
        path=path,
        format="gguf",
        config=config,
        tensors=dict(_canonical(tensors, config, path)),
        tokenizer_files=tokenizer_of(raw, path) or in_folder(path.parent),
    )


def _require_whole(raw: dict[str, Any], path: Path) -> None:
    """Refuse a part of a split file. Only the first part holds the model's fields."""
    count = raw.get("split.count")
    if count in (None, 0, 1):
        return
    first, whole = "FIRST_PART", "WHOLE"
    if match := _PART.match(path.name):
        first, whole = f"{match[1]}-00001-of-{match[2]}.gguf", f"{match[1]}.gguf"
    raise CheckpointError(
        f"{path} must be one whole file, got part {shown(raw.get('split.no', 0))} (counted from 0) "
        f"of {shown(count)}. Join the parts: llama-gguf-split --merge {first} {whole}."
    )


def _config(raw: dict[str, Any], tensors: dict[str, GgufTensor], path: Path) -> ModelConfig:
    fields = Fields(raw, path)
    fields.only("general.architecture", "llama", why="other models are not supported")
    fields.only("llama.expert_count", None, 0, why="experts are not supported")
    fields.only("llama.rope.scaling.type", None, "none", why="RoPE scaling is not supported")
    if raw.get("llama.attention.sliding_window") not in (None, 0):
        context = fields.integer("llama.context_length")
        fields.no_window("llama.attention.sliding_window", context)
    if "rope_freqs.weight" in tensors:
        raise CheckpointError(f"{path} holds rope_freqs.weight: RoPE scaling is not supported.")
    if "llama.rope.freq_base" not in raw:
        raise fields.error("llama.rope.freq_base", "must be stated, since readers differ")
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path} lacks token_embd.weight.")
    heads, hidden = (
        fields.integer(f"llama.{name}") for name in ("attention.head_count", "embedding_length")
    )
    sizes = {
        fields.integer(name)
        for name in (
            "llama.attention.key_length",
            "llama.attention.value_length",
            "llama.rope.dimension_count",
        )
        if name in raw
    }
    if len(sizes) > 1 or (not sizes and hidden % heads):
        raise CheckpointError(
            f"{path} must have one size of key, value and rotated part, got {sorted(sizes)}."
        )
    # Ends of the text, of a turn and of a message: each ends an answer.
    ends = [one for name in ("eos", "eot", "eom") for one in _token_id(fields, name)]
    return ModelConfig(
        architecture="LlamaForCausalLM",
        num_layers=fields.integer("llama.block_count"),
        hidden_size=hidden,
        intermediate_size=fields.integer("llama.feed_forward_length"),
        num_heads=heads,
        num_kv_heads=(
            fields.integer("llama.attention.head_count_kv")
            if "llama.attention.head_count_kv" in raw
            else heads
        ),
        head_dim=sizes.pop() if sizes else hidden // heads,
        vocab_size=tensors["token_embd.weight"].shape[0],
        # Stored in fp32: 1e-5 comes as 0.00000999999975.
        rms_norm_eps=float(f"{fields.number('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=float(f"{fields.number('llama.rope.freq_base'):.7g}"),
        max_position_embeddings=fields.integer("llama.context_length"),
        tied_head="output.weight" not in tensors,
        bos_token_id=next(_token_id(fields, "bos"), None),
        eos_token_ids=tuple(dict.fromkeys(ends)),
    )


def _token_id(fields: Fields, name: str) -> Iterator[int]:
    """A special token's id, where the header states one."""
    key = _TOKEN_ID.format(name)
    if key in fields.raw:
        value = fields.raw[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise fields.error(key, "must be a token id")
        yield value


def _canonical(
    tensors: dict[str, GgufTensor], config: ModelConfig, path: Path
) -> Iterator[tuple[str, LazyTensor]]:
    orders = {
        "attn_q": half_split_index(config.num_heads, config.head_dim),
        "attn_k": half_split_index(config.num_kv_heads, config.head_dim),
    }
    for name, stored in tensors.items():
        match = _NAME.match(name)
        names = LAYER_NAMES if match and match["layer"] else OTHER_NAMES
        if match is None or match["leaf"] not in names:
            raise CheckpointError(
                f"{path} holds {name}, which a model of this family does not have."
            )
        target = f"{names[match['leaf']]}.weight"
        if match["layer"]:
            target = f"model.layers.{int(match['layer'])}.{target}"
        tensor = _lazy(target, stored, path)
        order = orders.get(match["leaf"])
        if order is not None and len(order) != tensor.shape[0]:
            raise CheckpointError(
                f"{name} in {path} must have {len(order)} rows, got {tensor.shape[0]}."
            )
        yield target, tensor if order is None else gathered(target, tensor, order)


def _lazy(name: str, stored: GgufTensor, path: Path) -> LazyTensor:
    kind, _, _ = TYPES[stored.kind]
    if kind in _PLAIN:
        return TensorRef(
            name=name, dtype=_PLAIN[kind], shape=stored.shape, path=path, offset=stored.offset
        )
    return Dequantised(name=name, dtype=DType.BF16, shape=stored.shape, path=path, stored=stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantised(LazyTensor):
    """A quantised tensor, as the BF16 numbers next to what it stands for."""

    path: Path
    stored: GgufTensor

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `LazyTensor.rows`.

        Raises:
            MachineError: the package gguf is not installed.
        """
        try:
            import gguf
        except ImportError as error:
            raise MachineError(
                f"{self.path} holds quantised weights, which needs the package gguf. "
                "Install it: pip install gguf."
            ) from error
        _, block, num_bytes = TYPES[self.stored.kind]
        each = self.shape[-1] // block * num_bytes
        raw = TensorRef(
            name=self.name,
            dtype=DType.FP8,  # bytes as they are
            shape=(self.shape[0], each),
            path=self.path,
            offset=self.stored.offset,
        ).rows(start, stop)
        kind = gguf.GGMLQuantizationType(self.stored.kind)
        with np.errstate(all="ignore"):  # a damaged scale may be no number
            values = gguf.quants.dequantize(raw, kind)
        return bfloat16.from_float32(np.asarray(values, np.float32))
