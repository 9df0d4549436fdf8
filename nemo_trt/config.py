"""The shape of a model, as its checkpoint states it."""

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.shown import shown

_MOST = {
    "num_layers": 1024,
    "num_heads": 1024,
    "num_kv_heads": 1024,
    "head_dim": 1024,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**31 - 1,
}
"""What is counted out tensor by tensor or row by row: a damaged number must not take all memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer of the Mistral / Llama family. Nothing has a structural default.

    Attributes:
        architecture: the checkpoint's own class name, e.g. "MistralForCausalLM".
        head_dim: width of one head, D. It is *not* hidden_size / num_heads for Mistral-NeMo.
        rope_theta: base of the rotary frequencies.
        max_position_embeddings: context length that the checkpoint states. Metadata only.
        tied_head: the output head is the embedding.
        eos_token_ids: tokens that end an answer.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tied_head: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden_size",
            "intermediate_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"{name} must be a positive integer, got {shown(value)}.")
            if value > _MOST.get(name, value):
                raise CheckpointError(
                    f"{name} must be at most {_MOST[name]}, got {shown(value)}. No model "
                    "of this family has more: it is damaged."
                )
        limit = self.vocab_size
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim must be even for RoPE, got {self.head_dim}.")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if (
                not isinstance(value, int | float)
                or isinstance(value, bool)
                or not 0 < value <= sys.float_info.max
            ):
                raise CheckpointError(f"{name} must be a positive number, got {shown(value)}.")
        for name, ids in (
            ("bos_token_id", () if self.bos_token_id is None else (self.bos_token_id,)),
            ("eos_token_ids", self.eos_token_ids),
        ):
            for one in ids:
                if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < limit:
                    raise CheckpointError(
                        f"{name} must be of the vocabulary, 0 to {limit - 1}, got {shown(one)}."
                    )

    @property
    def query_size(self) -> int:
        """Columns of the query projection: H * D."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key or value projection: K * D."""
        return self.num_kv_heads * self.head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor of the attention scores, 1 / sqrt(D). No BF16 or FP16 number unless D is 4^n."""
        return 1.0 / math.sqrt(self.head_dim)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the canonical name and shape of every weight, in the order data flows."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (hidden,)
            yield f"{prefix}.self_attn.q_proj.weight", (self.query_size, hidden)
            yield f"{prefix}.self_attn.k_proj.weight", (self.kv_size, hidden)
            yield f"{prefix}.self_attn.v_proj.weight", (self.kv_size, hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, self.query_size)
            yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
            yield f"{prefix}.mlp.gate_proj.weight", (ffn, hidden)
            yield f"{prefix}.mlp.up_proj.weight", (ffn, hidden)
            yield f"{prefix}.mlp.down_proj.weight", (hidden, ffn)
        yield "model.norm.weight", (hidden,)
        if not self.tied_head:
            yield "lm_head.weight", (self.vocab_size, hidden)

    @property
    def num_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        total = 0
        for _, shape in self.tensors():
            size = 1
            for length in shape:
                size *= length
            total += size
        return total

    @property
    def num_parameters_per_step(self) -> int:
        """Parameters that one decode step reads: all but the embedding table, plus the head."""
        embedding = self.vocab_size * self.hidden_size
        return self.num_parameters - (0 if self.tied_head else embedding)

    def kv_bytes_per_token(self, dtype: DType) -> int:
        """Bytes that one cached token takes."""
        return (
            2  # key and value
            * self.num_layers
            * self.num_kv_heads
            * self.head_dim
            * dtype.itemsize
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {**asdict(self), "eos_token_ids": list(self.eos_token_ids)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: a field is missing, unknown or out of range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or set(data) != names:
            odd = sorted(names.symmetric_difference(data if isinstance(data, dict) else ()))
            raise CheckpointError(f"A model config must have exactly its fields; differing: {odd}.")
        return cls(**{**data, "eos_token_ids": tuple(data["eos_token_ids"])})
