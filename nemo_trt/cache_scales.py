"""What an FP8 bundle says of an FP8 cache: the scales of keys and values, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from .e4m3 import scale_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """One layer's keys and values on the calibration set.

    Attributes:
        key_amax: largest norm of a pair of key channels that RoPE turns together; it bounds the
            numbers of that key at every position.
        value_amax: largest magnitude of a value.
        shift: mean relative squared change of the residual stream when this layer's cache alone is
            FP8.
        kl: its share of the divergence that an FP8 cache in every layer causes, in nats.
    """

    key_amax: float
    value_amax: float
    shift: float
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheScales:
    """Everything that turns a BF16 cache into an FP8 one.

    Attributes:
        layers: all, in order.
        kl: divergence of the answers with an FP8 cache in every layer from the exact ones, in nats.
        max_kl: what was allowed.
        kept: layers whose cache stays in BF16, by number -> why.
    """

    layers: tuple[CacheLayer, ...]
    kl: float
    max_kl: float
    kept: Mapping[str, str]

    def scales(self, layer: int) -> tuple[float, float] | None:
        """What stored keys and values of a layer are multiplied by; None if it stays in BF16."""
        if str(layer) in self.kept:
            return None
        one = self.layers[layer]
        return scale_of(one.key_amax), scale_of(one.value_amax)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` wrote. Raises what a damaged record raises."""
        layers = tuple(
            CacheLayer(**{name: float(value) for name, value in one.items()})
            for one in data["layers"]
        )
        return cls(**{**data, "layers": layers, "kept": dict(data["kept"])})
