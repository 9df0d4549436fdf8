"""NeMo's model_config.yaml (NeMo 1) or model.yaml (NeMo 2) as a `ModelConfig`.

Names of fields: NVIDIA NeMo's megatron_llama_config.yaml and its Mistral converter, and Megatron's
TransformerConfig. Shapes of tensors win over the file: `nemo_names` checks them.
"""

import re
from typing import Any

from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError
from nemo_trt.shown import shown

from .fields import Fields

_INTERPOLATION = re.compile(r"\$\{(\.?)([\w.]+)\}")
# What Megatron computes otherwise when a field has another value; absent is None.
_ONLY: dict[str, tuple[Any, ...]] = {
    "rotary_percentage": (None, 1, 1.0),
    "rotary_percent": (None, 1, 1.0),
    "rotary_interleaved": (None, False),
    "position_embedding_type": (None, "rope"),
    "seq_len_interpolation_factor": (None, 1, 1.0),
    "scale_positional_embedding": (None, False),
    "rope_scaling": (None, False),
    "use_rope_scaling": (None, False),
    "normalization": ("rmsnorm", "RMSNorm"),
    "layernorm_zero_centered_gamma": (None, False),
    "activation": (None, "fast-swiglu", "swiglu"),
    "gated_linear_unit": (None, True),
    "bias": (None, False),
    "add_bias_linear": (None, False),
    "add_qkv_bias": (None, False),
    "qk_layernorm": (None, False),
    "num_moe_experts": (None, 0, 1),
    "multi_latent_attention": (None, False),
    "window_size": (None,),
    "mcore_gpt": (None, True),
}


def parse_nemo_config(
    raw: dict[str, Any], where: str, *, head_dim: int, vocab_size: int, tied: bool
) -> ModelConfig:
    """A config of NeMo as a `ModelConfig`.

    Args:
        raw: model_config.yaml, or the `config` of model.yaml.
        head_dim, vocab_size: of the tensors, for where the config does not say.
        tied: there is no head among the tensors.

    Raises:
        CheckpointError: a field is missing, of a wrong type, or asks for what is not supported.
    """
    fields = Fields({key: _resolved(value, raw) for key, value in raw.items()}, where)
    for name, allowed in _ONLY.items():
        if name == "normalization" and name not in raw:
            raise fields.error(name, "must be 'rmsnorm'")
        fields.only(name, *allowed, why="other models are not supported")
    if fields.raw.get("rotary_base") is None:
        raise fields.error(
            "rotary_base", "must be stated, since an absent one means 10,000 to Megatron"
        )
    heads = fields.integer("num_attention_heads")
    shared = fields.flag("share_embeddings_and_output_weights")
    if shared != tied:
        raise fields.error(
            "share_embeddings_and_output_weights",
            f"must be {str(tied).lower()} by the tensors",
        )
    context = next(
        (
            fields.integer(name)
            for name in ("max_position_embeddings", "encoder_seq_length", "seq_length")
            if fields.raw.get(name) is not None
        ),
        None,
    )
    if context is None:
        raise fields.error("encoder_seq_length", "must be a positive integer")
    given = fields.raw.get("kv_channels")
    if given is not None and fields.integer("kv_channels") != head_dim:
        raise fields.error("kv_channels", f"must be {head_dim} by the rows of linear_qkv")
    groups = fields.raw.get("num_query_groups")
    return ModelConfig(
        architecture="MistralForCausalLM",
        num_layers=fields.integer("num_layers"),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("ffn_hidden_size"),
        num_heads=heads,
        num_kv_heads=heads if groups is None else fields.integer("num_query_groups"),
        head_dim=head_dim,
        vocab_size=vocab_size,
        rms_norm_eps=fields.number("layernorm_epsilon"),
        rope_theta=fields.number("rotary_base"),
        max_position_embeddings=context,
        tied_head=tied,
        bos_token_id=None,
        eos_token_ids=(),
    )


def _resolved(value: Any, raw: dict[str, Any]) -> Any:
    """A value, or what `${name}` (OmegaConf's reference to another field of this level) means."""
    for _ in range(8):
        match = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2] not in raw:
            return value
        value = raw[match[2]]
    raise CheckpointError(f"{shown(value)} must refer to a field with a value, got a circle.")
