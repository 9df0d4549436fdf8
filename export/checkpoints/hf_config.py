"""A Hugging Face config.json as a `ModelConfig`, or a refusal in words.

What a field means when it is absent is what transformers 5 makes of it. Where that would be a guess
(a RoPE base of 10000, an eps of 1e-6, a sliding window of 4096), the field must be there.
"""

from pathlib import Path
from typing import Any

from nemo_trt.config import ModelConfig
from nemo_trt.shown import shown

from .fields import Fields

ARCHITECTURES = ("MistralForCausalLM", "LlamaForCausalLM")


def parse_config(raw: dict[str, Any], generation: dict[str, Any], path: Path) -> ModelConfig:
    """Turn config.json (and generation_config.json, for its end tokens) into a `ModelConfig`.

    An absent `head_dim` means hidden_size / num_attention_heads; where that is wrong, the tensors'
    shapes refuse it.

    Raises:
        CheckpointError: a field is missing, of a wrong type, or asks for what is not supported.
    """
    fields = Fields(raw, path)
    architecture = _architecture(fields)
    _refuse_unsupported(fields, architecture)
    num_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    num_kv_heads = (
        num_heads
        if architecture == "LlamaForCausalLM" and raw.get("num_key_value_heads") is None
        else fields.integer("num_key_value_heads")
    )
    if raw.get("head_dim") is not None:
        head_dim = fields.integer("head_dim")
    elif hidden_size % num_heads:
        raise fields.error(
            "head_dim", f"must be given, since {hidden_size} / {num_heads} is broken"
        )
    else:
        head_dim = hidden_size // num_heads
    return ModelConfig(
        architecture=architecture,
        num_layers=fields.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope_theta=_rope_theta(fields),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        tied_head=fields.flag("tie_word_embeddings"),
        bos_token_id=next(iter(_token_ids(fields, raw, "bos_token_id", most=1)), None),
        eos_token_ids=_end_tokens(fields, raw, generation),
    )


def _architecture(fields: Fields) -> str:
    found = fields.raw.get("architectures")
    if not isinstance(found, list) or len(found) != 1 or found[0] not in ARCHITECTURES:
        raise fields.error("architectures", f"must be one of {', '.join(ARCHITECTURES)}")
    return str(found[0])


def _refuse_unsupported(fields: Fields, architecture: str) -> None:
    raw = fields.raw
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name):
            raise fields.error(name, "must be false: biases are not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise fields.error("hidden_act", "must be 'silu'")
    if architecture == "MistralForCausalLM" and "sliding_window" not in raw:
        raise fields.error(
            "sliding_window", "must be stated, since absent means 4096; null means none"
        )
    if raw.get("sliding_window") is not None:
        fields.no_window("sliding_window", fields.integer("max_position_embeddings"))


def _rope_theta(fields: Fields) -> float:
    """The RoPE base, top-level (transformers 4) or in rope_parameters (transformers 5)."""
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.raw.get(name)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise fields.error(name, "must be an object")
        kind = value.get("rope_type", value.get("type", "default"))
        if kind != "default":
            raise fields.error(name, "must be of type 'default': RoPE scaling is not supported")
    inner = fields.raw.get("rope_parameters") or {}
    found = {
        Fields(raw, where).number("rope_theta")
        for raw, where in (
            (inner, f"rope_parameters of {fields.where}"),
            (fields.raw, fields.where),
        )
        if raw.get("rope_theta") is not None
    }
    if len(found) > 1:
        raise fields.error(
            "rope_theta", f"must agree with rope_parameters, which says {shown(inner)}"
        )
    if not found:
        raise fields.error("rope_theta", "must be a positive number, here or in rope_parameters")
    return found.pop()


def _token_ids(fields: Fields, raw: dict[str, Any], name: str, most: int) -> tuple[int, ...]:
    value = raw.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if len(ids) > most or not all(
        isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids
    ):
        raise fields.error(name, "must be a token id")
    return tuple(ids)


def _end_tokens(fields: Fields, raw: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    """End tokens of config.json and generation_config.json, which may name more."""
    both = (
        *_token_ids(fields, raw, "eos_token_id", most=100),
        *_token_ids(fields, generation, "eos_token_id", most=100),
    )
    return tuple(dict.fromkeys(both))
