"""Which groups stay in BF16, by measurement."""

import math
from collections.abc import Mapping
from dataclasses import replace

from nemo_trt.config import ModelConfig
from nemo_trt.quantization import Activation, groups


def choose_kept(
    config: ModelConfig, measured: Mapping[str, Activation], *, kl: float, max_kl: float
) -> tuple[dict[str, Activation], dict[str, str]]:
    """Share out the measured divergence among the groups, and keep the costliest in BF16.

    A group's share is its share of all shifts: the mean relative squared change of the residual
    stream when it alone is FP8. FP8's rounding errors are small and independent, so their effects
    add up; on the sample model shares predict the divergence of any subset within a factor of two
    (docs/performance.md). Groups are kept in the order of divergence a weight byte that FP8 saves.

    Args:
        measured: every group, its `shift` known.
        kl: divergence with every group in FP8.
        max_kl: divergence that is allowed.

    Returns:
        The groups with their share of the divergence, and those that are kept -> why.
    """
    shares = shared_out({group: one.shift or 0.0 for group, one in measured.items()}, kl)
    shapes = dict(config.tensors())
    sizes = {
        group: sum(math.prod(shapes[name]) for name in weights)
        for group, weights in groups(config)
        if group in measured
    }
    kept = costliest(shares, sizes, kl=kl, max_kl=max_kl)
    return {group: replace(one, kl=shares[group]) for group, one in measured.items()}, kept


def shared_out(shifts: Mapping[str, float], kl: float) -> dict[str, float]:
    """A measured divergence, in proportion to the shifts that cause it."""
    total = sum(shifts.values()) or 1.0
    return {name: kl * shift / total for name, shift in shifts.items()}


def costliest(
    shares: Mapping[str, float], sizes: Mapping[str, int], *, kl: float, max_kl: float
) -> dict[str, str]:
    """What must stay in BF16 until the rest causes at most `max_kl`, the costliest a byte first ->
    why."""
    rest, kept = kl, {}
    for name in sorted(shares, key=lambda n: shares[n] / sizes[n], reverse=True):
        if rest <= max_kl:
            break
        kept[name] = f"KL {shares[name]:.2g} of {kl:.2g}, at most {max_kl:g} in all"
        rest -= shares[name]
    return kept
