"""What an FP8 bundle records of its numbers: which projections are FP8, their scales and source.

A *group* is the projections that read the same activation (q/k/v; o; gate/up; down; the head). It
has one activation scale, and its weights share one scale, so that an engine can merge them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from nemo_trt.cache_scales import CacheScales
from nemo_trt.config import ModelConfig
from nemo_trt.e4m3 import scale_of
from nemo_trt.errors import DAMAGED_JSON, BundleError

LM_HEAD = "lm_head"
STORED = "checkpoint"
"""`Quantization.method` where an FP8 checkpoint gave the scales."""

WeightScales = Literal["per-tensor", "per-channel"]


def groups(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every group's name and its weights' names, in the order data flows, the head last."""
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        for group, projections in (
            ("self_attn.qkv", ("q_proj", "k_proj", "v_proj")),
            ("self_attn.o", ("o_proj",)),
            ("mlp.gate_up", ("gate_proj", "up_proj")),
            ("mlp.down", ("down_proj",)),
        ):
            block = group.split(".")[0]
            yield f"{prefix}.{group}", tuple(f"{prefix}.{block}.{p}.weight" for p in projections)
    yield LM_HEAD, ("lm_head.weight",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """The input of a group on the calibration set.

    Attributes:
        amax: largest magnitude that was seen.
        clip: magnitude that the scale is made for; `amax` or less.
        shift: mean relative squared change of the residual stream when this group alone is FP8;
            None where an FP8 checkpoint gave the scale.
        kl: its share of the divergence that FP8 in every group causes, in nats; None likewise.
    """

    amax: float
    clip: float
    shift: float | None = None
    kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Everything that turns a BF16 checkpoint into this FP8 bundle, or an FP8 one's own scales.

    Attributes:
        weight_scales: one a group, or one an output channel; an FP8 checkpoint's own are one a
            weight instead of one a group.
        method: how `clip` was chosen; `STORED` where an FP8 checkpoint gave every scale.
        calibration: name, sha256, samples and tokens of the calibration set; of an FP8 checkpoint
            its kind.
        activations: group -> its input; all groups that were measured.
        weight_amax: weight -> largest magnitude.
        kl: divergence of the answers with every group in FP8 from the exact ones, in nats; None
            where it was not measured.
        max_kl: what was allowed; None likewise.
        kept: groups that stay in BF16 -> why.
        cache: scales of an FP8 cache; None where it was not calibrated.
    """

    weight_scales: WeightScales
    method: str
    calibration: Mapping[str, str | int]
    activations: Mapping[str, Activation]
    weight_amax: Mapping[str, float]
    kl: float | None
    max_kl: float | None
    kept: Mapping[str, str]
    cache: CacheScales | None = None

    def is_fp8(self, group: str) -> bool:
        """Whether a group computes in FP8."""
        return group in self.activations and group not in self.kept

    def activation_scale(self, group: str) -> float:
        """The scale of a group's input."""
        return scale_of(self.activations[group].clip)

    def weight_scale(self, weights: tuple[str, ...]) -> float:
        """The one scale of a group's weights."""
        return scale_of(max(self.weight_amax[name] for name in weights))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            BundleError: a field is missing, unknown or of a wrong kind.
        """
        try:
            activations = {
                group: Activation(**{key: _number(value) for key, value in one.items()})
                for group, one in data["activations"].items()
            }
            if data["weight_scales"] not in ("per-tensor", "per-channel"):
                raise ValueError(f"weight_scales {data['weight_scales']!r}")
            found = data.get("cache")
            cache = CacheScales.from_dict(found) if found else None
            return cls(**{**data, "activations": activations, "cache": cache})
        except DAMAGED_JSON as error:
            raise BundleError(f"The quantisation's record is damaged: {error!r}.") from error


def _number(value: Any) -> Any:
    return None if value is None else float(value)
