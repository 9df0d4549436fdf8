"""What engines are planned for, and the bytes that a decode step of it reads."""

from typing import Literal, Protocol

from nemo_trt.choices import require_choice
from nemo_trt.config import ModelConfig
from nemo_trt.errors import BuildError
from nemo_trt.precision import DType

CacheKind = Literal["base", "fp16", "fp8"]
CACHE_KINDS: tuple[CacheKind, ...] = ("base", "fp16", "fp8")


class Planned(Protocol):
    """What is planned for: a bundle's `Manifest`, or what a bundle will be."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""

    @property
    def precision(self) -> DType:
        """The compute precision."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""

    @property
    def kept_cache_layers(self) -> frozenset[int] | None:
        """Layers that keep the base dtype in an FP8 cache; None where none was calibrated."""


def cache_dtypes(model: Planned, kind: CacheKind, *, paged: bool) -> tuple[DType, ...]:
    """The dtype of each layer's keys and values.

    Args:
        kind: "base", the dtype of activations; "fp16", in which attention computes, too; or
            "fp8" in the layers that take it.
        paged: with paged attention.

    Raises:
        BuildError: an FP8 cache has no pages, or the bundle has no scales for it; an FP16 cache
            has pages, or the bundle does not compute in BF16.
        RequestError: there is no such kind.
    """
    require_choice("kv_cache", kind, CACHE_KINDS)
    layers, base = range(model.config.num_layers), model.precision.base
    if kind == "base":
        return tuple(base for _ in layers)
    if kind == "fp16":
        if base is not DType.BF16:
            raise BuildError(
                f"--kv-cache fp16 must have a BF16 or FP8 bundle, got {model.precision}. "
                "Leave it out."
            )
        if paged:
            raise BuildError(
                "--kv-cache fp16 must have --attention native, got paged. Leave one of them out."
            )
        return tuple(DType.FP16 for _ in layers)
    if not paged:
        raise BuildError("An FP8 cache needs --attention paged: TensorRT's own takes none.")
    kept = model.kept_cache_layers
    if kept is None:
        raise BuildError(
            "An FP8 cache needs the scales of a calibration, and the bundle holds none. Export the "
            "checkpoint again, with --precision fp8, from weights that are not FP8 yet."
        )
    return tuple(base if layer in kept else DType.FP8 for layer in layers)


def kv_bytes_per_token(model: Planned, kind: CacheKind = "base", *, paged: bool = False) -> int:
    """Bytes of a row's keys and values of one token. Raises what `cache_dtypes` raises."""
    config = model.config
    by_layer = map(config.kv_bytes_per_token, cache_dtypes(model, kind, paged=paged))
    return sum(by_layer) // config.num_layers


def step_bytes(model: Planned) -> int:
    """Weights that a decode step reads: all but the embedding, unless the head is tied to it."""
    config = model.config
    embedding = config.vocab_size * config.hidden_size * model.precision.base.itemsize
    return model.weight_bytes - (0 if config.tied_head else embedding)
