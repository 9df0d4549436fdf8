"""Groups, scales and the record of a quantisation."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nemo_trt.e4m3 import scale_of
from nemo_trt.errors import BundleError
from nemo_trt.export.samples import SHAPES
from nemo_trt.quantization import Activation, Quantization, groups

pytestmark = pytest.mark.unit

QUANTIZATION = Quantization(
    weight_scales="per-tensor",
    method="amax",
    calibration={"name": "x", "sha256": "y", "samples": 1, "tokens": 2},
    activations={"a": Activation(amax=4.0, clip=3.0, shift=1e-3, kl=0.1)},
    weight_amax={"w": 1.0, "v": 2.0},
    kl=0.1,
    max_kl=0.2,
    kept={},
)


def test_every_weight_is_in_a_group_but_embedding_and_norms() -> None:
    config = replace(SHAPES["nemo-tiny"], num_layers=3)
    grouped = [name for _, weights in groups(config) for name in weights]
    left = {name for name, _ in config.tensors()} - set(grouped)
    assert len(set(grouped)) == len(grouped)
    assert all("norm" in name or "embed" in name for name in left)


@pytest.mark.parametrize("amax", [1e-6, 0.37, 448.0, 3000.0])
def test_a_scale_is_bf16_and_puts_amax_on_the_largest_number(amax: float) -> None:
    scale = scale_of(amax)
    assert scale == float(np.float32(scale).astype(ml_dtypes.bfloat16))
    assert amax / scale == pytest.approx(448, rel=2**-8)


def test_a_tensor_of_zeros_has_scale_one() -> None:
    assert scale_of(0.0) == 1.0


def test_weights_share_the_scale_of_the_largest_and_the_clip_makes_the_activations() -> None:
    assert QUANTIZATION.weight_scale(("w", "v")) == scale_of(2.0)
    assert QUANTIZATION.activation_scale("a") == scale_of(3.0)


def test_what_is_written_is_read_again() -> None:
    assert Quantization.from_dict(QUANTIZATION.to_dict()) == QUANTIZATION


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("kept"),
        lambda data: data.update(weight_scales="per-block"),
        lambda data: data.update(more=1),
        lambda data: data["activations"]["a"].update(clip="x"),
        lambda data: data.update(activations=3),
    ],
)
def test_damage_is_refused(damage: Any) -> None:
    data = QUANTIZATION.to_dict()
    damage(data)
    with pytest.raises(BundleError, match="damaged"):
        Quantization.from_dict(data)
