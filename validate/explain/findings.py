"""How far a place is off, where, and what that looks like, in words."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_trt.config import ModelConfig

from .places import LAYER_PLACES, Array, Part

Values = NDArray[np.float64]

LIMITS = {"fp32": 2e-5, "fp16": 4e-3, "bf16": 1.5e-2, "fp8": 1.5e-1}
"""Largest relative L2 of a position that a sound place has, by what rounds there.

Measured on the sample model (docs/validation.md): fp32 1.4e-6, FP16 1.8e-3; rehearsed, BF16 5.8e-3,
and 6.2e-2 for matmuls in FP8."""
_ATTENTION = 4.0
"""Attention rounds scores and probabilities too: its limit is so many times as large. Rehearsed:
2.4e-2 in BF16."""
_PRODUCTS = {place.name for place in LAYER_PLACES if place.name.endswith("_proj")}
_CHANNELS = 10.0
"""A channel holds fewer numbers than a position: its error may be so many times as large."""
_SMALL = 0.1
"""A channel's error is measured against at least this share of the mean channel."""
_TINY = 1e-30
_HEADS = {place.name: place.heads for place in LAYER_PLACES}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceError:
    """One place of one part, fed with the reference's values.

    Attributes:
        part: a layer's index, "embedding" or "head".
        place: its name, `self_attn.k_proj`.
        relative_l2: of the whole tensor.
        worst_position, position_error: the token that is furthest off, and its relative L2.
        worst_channel, channel_error: the same of channels.
        limit: of `position_error`, if the place is sound.
        words: what it looks like; empty where it is within the limit.
    """

    part: Part
    place: str
    relative_l2: float
    worst_position: int
    position_error: float
    worst_channel: int
    channel_error: float
    limit: float
    words: str

    @property
    def where(self) -> str:
        """`layer 7 self_attn.k_proj`."""
        return f"layer {self.part} {self.place}" if isinstance(self.part, int) else self.place


def limit_of(place: str, rounding: str, products: str) -> float:
    """`LIMITS` of a place.

    Args:
        rounding: what values are rounded to, "bf16".
        products: to what the inputs of matmuls are.
    """
    if place in _PRODUCTS and products == "fp8":
        return LIMITS[products]
    return LIMITS[rounding] * (_ATTENTION if place == "self_attn.attention" else 1)


def place_error(
    part: Part, place: str, got: Array, expected: Array, config: ModelConfig, limit: float
) -> PlaceError:
    """Compare a place's values, (1, S, C) or (1, heads, S, D), with the reference's."""
    flat, wanted = _flat(got), _flat(expected)
    flat = np.where(np.isfinite(flat), flat, np.inf)
    with np.errstate(invalid="ignore"):
        error = flat - wanted
    by_position = _relative(error, wanted, 1)
    by_channel = _relative(error, wanted, 0)
    position, channel = int(by_position.argmax()), int(by_channel.argmax())
    words = ""
    if by_position[position] > limit or by_channel[channel] > _CHANNELS * limit:
        off_channels = by_channel > min(_CHANNELS * limit, by_channel[channel])
        words = _words(
            place,
            error,
            wanted,
            np.flatnonzero(by_position > min(limit, by_position[position] / 2)),
            np.flatnonzero(off_channels | (by_channel >= by_channel[channel] / 2)),
            config,
        )
    return PlaceError(
        part=part,
        place=place,
        relative_l2=float(np.linalg.norm(error) / max(float(np.linalg.norm(wanted)), _TINY)),
        worst_position=position,
        position_error=float(by_position[position]),
        worst_channel=channel,
        channel_error=float(by_channel[channel]),
        limit=limit,
        words=words,
    )


def _flat(values: Array) -> Values:
    """(S, channels) of one row."""
    one = values[0].astype(np.float64)
    if one.ndim == 3:
        one = one.transpose(1, 0, 2)
    flat: Values = one.reshape(len(one), -1)
    return flat


def _relative(error: Values, wanted: Values, axis: int) -> Values:
    """|e| / |r| along an axis, r at least a share of its mean."""
    norms = np.linalg.norm(wanted, axis=axis)
    least = _SMALL * float(np.sqrt(np.mean(norms**2))) if axis == 0 else 0.0
    size = np.maximum(np.maximum(norms, least), _TINY)
    relative: Values = np.asarray(np.linalg.norm(error, axis=axis) / size)
    return np.where(np.isnan(relative), np.inf, relative)


def _words(
    place: str,
    error: Values,
    wanted: Values,
    positions: NDArray[np.int64],
    channels: NDArray[np.int64],
    config: ModelConfig,
) -> str:
    part = np.ix_(positions, channels)
    some, expected = error[part], wanted[part]
    if not np.isfinite(some).all():
        size = "not finite"
    else:
        norm = float((expected**2).sum())
        factor = float((some * expected).sum()) / norm if norm else 0.0
        rest = np.linalg.norm(some - factor * expected) / max(float(np.linalg.norm(some)), _TINY)
        relative = float(np.linalg.norm(some)) / max(norm**0.5, _TINY)
        if rest > 0.5:
            size = f"{relative:.2g} times its size off" if relative > 1 else f"{relative:.2g} off"
        elif factor < -0.999:
            size = "all zeros"
        else:
            size = f"{100 * abs(factor):.3g} % too {'large' if factor > 0 else 'small'}"
    return (
        size
        + _channels(place, channels, wanted.shape[1], config)
        + _positions(positions, len(wanted))
    )


def _channels(place: str, channels: NDArray[np.int64], count: int, config: ModelConfig) -> str:
    if len(channels) >= 0.9 * count:
        return ""
    first, last = int(min(channels)), int(max(channels))
    if first == last:
        return f" in channel {first}"
    whole = len(channels) >= 0.9 * (last - first + 1)
    text = f" in channels {first} to {last}" if whole else f" in {len(channels)} channels"
    width, kind = config.head_dim, _HEADS.get(place)
    heads = sorted({int(c) // width for c in channels})
    if kind and len(channels) >= 0.9 * width * len(heads):
        many = "s" if len(heads) > 1 else ""
        text += f" ({kind} head{many} {', '.join(map(str, heads))})"
    return text


def _positions(positions: NDArray[np.int64], count: int) -> str:
    if len(positions) >= 0.9 * count:
        return ""
    first, last = int(min(positions)), int(max(positions))
    if first == last:
        return f" at token {first}"
    if last == count - 1 and len(positions) >= 0.9 * (last - first + 1):
        return f" from token {first} on"
    return f" at {len(positions)} of {count} tokens"
