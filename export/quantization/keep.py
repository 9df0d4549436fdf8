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
    shifts = {group: one.shift or 0.0 for group, one in measured.items()}
    total = sum(shifts.values()) or 1.0
    shares = {group: kl * shift / total for group, shift in shifts.items()}
    shapes = dict(config.tensors())
    sizes = {
        group: sum(math.prod(shapes[name]) for name in weights)
        for group, weights in groups(config)
        if group in measured
    }
    rest, kept = kl, {}
    for group in sorted(shares, key=lambda g: shares[g] / sizes[g], reverse=True):
        if rest <= max_kl:
            break
        kept[group] = f"KL {shares[group]:.2g} of {kl:.2g}, at most {max_kl:g} in all"
        rest -= shares[group]
    return {group: replace(one, kl=shares[group]) for group, one in measured.items()}, kept
