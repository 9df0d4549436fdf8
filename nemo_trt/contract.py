"""The graph contract: name, dtype and symbolic shape of every input and output of a bundle's graph.

Shape letters: B batch rows, S new tokens a row, T cache capacity, N logit positions a row, H query
heads, K kv heads, D head dim, V vocabulary, L layers. `docs/contract.md` states the meaning.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_trt.config import ModelConfig
from nemo_trt.precision import DType

CONTRACT_VERSION = 2
OPSET = 24
IR_VERSION = 10

INPUT_IDS = "input_ids"
WRITE_INDICES = "write_indices"
LOGIT_INDICES = "logit_indices"
LOGITS = "logits"
PAST = "past_key_values."  # what the names of all cache inputs begin with


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One graph input or output; a dimension is a number or a shape letter."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


def past_name(layer: int, kind: str) -> str:
    """Input name of a layer's cache; `kind` is "key" or "value"."""
    return f"{PAST}{layer}.{kind}"


def layer_of(cache: str) -> int:
    """The layer of a past or present name."""
    return int(cache.rsplit(".", 2)[1])


def present_name(layer: int, kind: str) -> str:
    """Output name of a layer's updated cache; `kind` is "key" or "value"."""
    return f"present.{layer}.{kind}"


def cache_names(num_layers: int) -> Iterator[tuple[str, str]]:
    """Yield (past, present) of every cache tensor, which share their memory."""
    for layer in range(num_layers):
        for kind in ("key", "value"):
            yield past_name(layer, kind), present_name(layer, kind)


def inputs(config: ModelConfig, precision: DType) -> tuple[TensorSpec, ...]:
    """Every graph input, in order; the caches have the base dtype of `precision`."""
    cache = ("B", config.num_kv_heads, "T", config.head_dim)
    return (
        TensorSpec(INPUT_IDS, DType.INT64, ("B", "S")),
        TensorSpec(WRITE_INDICES, DType.INT64, ("B",)),
        TensorSpec(LOGIT_INDICES, DType.INT64, ("B", "N")),
        *(TensorSpec(past, precision.base, cache) for past, _ in cache_names(config.num_layers)),
    )


def outputs(config: ModelConfig, precision: DType) -> tuple[TensorSpec, ...]:
    """Every graph output, in order."""
    cache = ("B", config.num_kv_heads, "T", config.head_dim)
    return (
        TensorSpec(LOGITS, DType.FP32, ("B", "N", config.vocab_size)),
        *(
            TensorSpec(present, precision.base, cache)
            for _, present in cache_names(config.num_layers)
        ),
    )
