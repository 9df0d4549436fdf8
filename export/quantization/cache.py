"""What calibration finds of an FP8 cache: scales, and the layers whose cache stays in BF16."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nemo_trt.cache_scales import CacheLayer, CacheScales
from nemo_trt.e4m3 import scale_of
from nemo_trt.export import ops

from .keep import costliest, shared_out


@dataclass(slots=True)
class CacheHooks:
    """Observes the keys and values that a layer stores, or rounds them to E4M3.

    Keys come turned by RoPE. What is observed of them is the norm of each pair of channels that is
    turned together: no position, however far, makes a number of the pair larger.
    """

    key_amax: float = 0.0
    value_amax: float = 0.0
    observes: bool = True
    rounds: bool = False

    def key(self, _: nn.Module, __: object, keys: Tensor) -> Tensor | None:
        """Of (B, K, S, D) keys."""
        if self.observes:
            first, second = keys.float().chunk(2, dim=-1)
            self.key_amax = max(self.key_amax, float(torch.hypot(first, second).max()))
        return self._rounded(keys, self.key_amax)

    def value(self, _: nn.Module, __: object, values: Tensor) -> Tensor | None:
        """Of (B, K, S, D) values."""
        if self.observes:
            self.value_amax = max(self.value_amax, float(values.abs().max()))
        return self._rounded(values, self.value_amax)

    def _rounded(self, stored: Tensor, amax: float) -> Tensor | None:
        if not self.rounds:
            return None
        scale = torch.tensor(scale_of(amax), device=stored.device)
        rounded: Tensor = ops.quantize_dequantize(stored, scale)
        return rounded


def choose_layers(layers: Sequence[CacheLayer], *, kl: float, max_kl: float) -> CacheScales:
    """Share out the divergence of an FP8 cache among layers, and keep the costliest in BF16.

    The rule is that of the groups of weights. See `choose_kept`.

    Args:
        layers: all, their `shift` known.
        kl: divergence with an FP8 cache in every layer.
        max_kl: divergence that is allowed.
    """
    numbered = {str(number): one for number, one in enumerate(layers)}
    shares = shared_out({number: one.shift for number, one in numbered.items()}, kl)
    return CacheScales(
        layers=tuple(replace(one, kl=shares[number]) for number, one in numbered.items()),
        kl=kl,
        max_kl=max_kl,
        kept=costliest(shares, dict.fromkeys(shares, 1), kl=kl, max_kl=max_kl),
    )
