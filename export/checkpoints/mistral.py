"""Reads Mistral's own files: params.json beside consolidated*.safetensors, and tekken.json.

Sources: the reference implementation's arguments (mistral-inference, args.py) and transformers'
conversion of these files, whose `permute_for_rope` is `half_split_index` here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError
from nemo_trt.safetensors import read_layout
from nemo_trt.shown import shown
from nemo_trt.tensors import LazyTensor, TensorRef, renamed

from .checkpoint import Checkpoint
from .derived import gathered, half_split_index
from .fields import Fields
from .fp8 import StoredScales, dequantised, refused, require_no_fp8, split_off_scales
from .hf_names import without_tied_head
from .text_files import read_json
from .tokenizer_files import TEKKEN, TEKKEN_BOS, TEKKEN_EOS, in_folder

PARAMS = "params.json"
PATTERN = "consolidated*.safetensors"
_DEFAULT_CONTEXT = 128_000  # vLLM's, for a params.json that does not say
_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
}
_OTHER = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def recognises(path: Path) -> bool:
    """Whether `path` is a folder with params.json and Mistral's weight files."""
    return path.is_dir() and (path / PARAMS).is_file() and any(path.glob("consolidated*"))


def read(path: Path, *, dequantise: bool = False, keep_fp8: bool = False) -> Checkpoint:
    """Read headers and params.json.

    Args:
        dequantise: read FP8 weights as BF16 ones.
        keep_fp8: read FP8 weights as the codes that they are.

    Raises:
        CheckpointError: a file is missing, damaged or not supported.
    """
    if not (path / PARAMS).is_file():
        raise CheckpointError(f"{path} must hold {PARAMS} and {PATTERN}, got no {PARAMS}.")
    files = in_folder(path)
    raw = read_json(path / PARAMS)
    quantization = raw.pop("quantization", None)
    stored: dict[str, LazyTensor] = dict(_stored(path))
    scales: dict[str, StoredScales] = {}
    if quantization is not None:
        kind = quantization.get("qformat_weight") if isinstance(quantization, dict) else None
        if kind != "fp8_e4m3":
            raise CheckpointError(
                f"quantization in {path / PARAMS} must be fp8_e4m3, got {shown(quantization)}."
            )
        if dequantise:
            stored = dequantised(stored, None, path)
        elif keep_fp8:
            stored, scales = split_off_scales(stored, path)
        else:
            raise refused(kind, path)
    if quantization is None:
        require_no_fp8(stored, path)
    config = parse_params(raw, path / PARAMS, tekken=any(f.name == TEKKEN for f in files))
    tensors = without_tied_head(dict(_canonical(stored, config, path)), config, path)
    return Checkpoint(
        path=path,
        format="mistral",
        config=config,
        fp8=_canonical_scales(scales, config),
        fp8_kind="fp8_e4m3" if quantization is not None else "",
        dequantised=quantization is not None and dequantise,
        tensors=tensors,
        tokenizer_files=files,
    )


def parse_params(raw: dict[str, Any], where: Path, *, tekken: bool) -> ModelConfig:
    """params.json as a `ModelConfig`.

    Args:
        tekken: a tekken.json says which tokens begin and end a text.

    Raises:
        CheckpointError: a field is missing, of a wrong type, or asks for what is not supported.
    """
    fields = Fields(raw, where)
    for name in ("moe", "lora", "vision_encoder", "rope_scaling", "yarn"):
        fields.only(name, None, why="this is not supported")
    fields.only("model_type", None, "transformer", why="other models are not supported")
    fields.only("activation", None, "silu", why="other activations are not supported")
    if "rope_theta" not in raw:
        raise fields.error(
            "rope_theta",
            "must be stated, since readers differ in what absent means (10,000 or 1,000,000)",
        )
    context = next(
        (
            fields.integer(name)
            for name in ("max_position_embeddings", "max_seq_len")
            if raw.get(name) is not None
        ),
        _DEFAULT_CONTEXT,
    )
    for name in ("sliding_window", "_sliding_window"):
        fields.no_window(name, context)
    return ModelConfig(
        architecture="MistralForCausalLM",
        num_layers=fields.integer("n_layers"),
        hidden_size=fields.integer("dim"),
        intermediate_size=fields.integer("hidden_dim"),
        num_heads=fields.integer("n_heads"),
        num_kv_heads=fields.integer("n_kv_heads"),
        head_dim=fields.integer("head_dim"),
        vocab_size=fields.integer("vocab_size"),
        rms_norm_eps=fields.number("norm_eps"),
        rope_theta=fields.number("rope_theta"),
        max_position_embeddings=context,
        tied_head=fields.flag("tied_embeddings") or fields.flag("tie_embeddings"),
        bos_token_id=TEKKEN_BOS if tekken else None,
        eos_token_ids=TEKKEN_EOS if tekken else (),
    )


def _stored(path: Path) -> dict[str, TensorRef]:
    """The tensors of all weight files, under Mistral's names."""
    files = sorted(path.glob(PATTERN))
    if not files:
        pickled = sorted(path.glob("consolidated*.pth"))
        raise CheckpointError(
            f"{path} must hold {PATTERN}, got "
            + (
                f"{pickled[0].name}, a pickle, which is not read. Convert it to safetensors."
                if pickled
                else "none. Fetch the checkpoint again."
            )
        )
    found: dict[str, TensorRef] = {}
    for file in files:
        for name, ref in read_layout(file).items():
            if name in found:
                raise CheckpointError(f"{file} holds {name}, which {found[name].path.name} holds.")
            found[name] = ref
    return found


def _canonical(
    stored: dict[str, LazyTensor], config: ModelConfig, path: Path
) -> Iterator[tuple[str, LazyTensor]]:
    """Every tensor under its canonical name, rows of q and k in half-split order."""
    for name, ref in stored.items():
        target, index = _place(name, config)
        if target is None:
            raise CheckpointError(
                f"{path} holds {name}, which a model of this family does not have."
            )
        if index is not None and len(index) != ref.shape[0]:
            raise CheckpointError(
                f"{name} in {path} must have {len(index)} rows by {PARAMS}, got {ref.shape[0]}."
            )
        yield target, renamed(ref, target) if index is None else gathered(target, ref, index)


def _canonical_scales(
    scales: dict[str, StoredScales], config: ModelConfig
) -> dict[str, StoredScales]:
    """Scales by canonical names, those of q's and k's rows in half-split order."""
    found = {}
    for name, one in scales.items():
        target, index = _place(name, config)
        assert target is not None  # its weight has been placed
        weight = one.weight if index is None or one.weight.ndim == 0 else one.weight[index]
        found[target] = StoredScales(weight=weight, input=one.input)
    return found


def _place(name: str, config: ModelConfig) -> tuple[str | None, NDArray[np.int64] | None]:
    """A tensor's canonical name, None if there is none, and the order of its rows, None if kept."""
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if layer is None:
        return _OTHER.get(name), None
    heads = {"attention.wq.weight": config.num_heads, "attention.wk.weight": config.num_kv_heads}
    leaf = _LAYER.get(layer[2])
    target = None if leaf is None else f"model.layers.{int(layer[1])}.{leaf}"
    count = heads.get(layer[2])
    return target, None if count is None else half_split_index(count, config.head_dim)


def native_name(canonical: str) -> str:
    """Mistral's name of a canonical tensor."""
    other = {there: here for here, there in _OTHER.items()}
    if canonical in other:
        return other[canonical]
    _, _, layer, leaf = canonical.split(".", 3)
    names = {there: here for here, there in _LAYER.items()}
    return f"layers.{layer}.{names[leaf]}"


def params_of(config: ModelConfig) -> dict[str, Any]:
    """The params.json of a model."""
    return {
        "dim": config.hidden_size,
        "n_layers": config.num_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_theta,
        "max_seq_len": config.max_position_embeddings,
        **({"tied_embeddings": True} if config.tied_head else {}),
    }
