"""A sum and its norm are one kernel; the sum is still there for what else reads it."""

import numpy as np
import pytest

from nemo_trt.passes.fuse_skips import FuseSkips
from nemo_trt.passes.graph_pass import apply

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit
SUM = (
    "g (float[1, 2, 4] x, float[1, 2, 4] z) => (float[1, 2, 4] y, float[1, 2, 4] u) "
    "{ s = Add(x, z) y = RMSNormalization<axis = -1, epsilon = 0.01>(s, w) u = Neg(s) }"
)


def test_sum_and_norm_are_what_they_were() -> None:
    w, x, z = random(4), random(1, 2, 4), random(1, 2, 4)
    expected = computed(graph_of(SUM, w=w), x=x, z=z)
    model = graph_of(SUM, w=w)
    apply(model, [FuseSkips()])
    assert operators(model) == ["Neg", "SkipSimplifiedLayerNormalization"]
    for one, other in zip(computed(model, x=x, z=z), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_norm_of_no_sum_stays() -> None:
    model = graph_of(SUM.replace("Add(x, z)", "Mul(x, z)"), w=random(4))
    apply(model, [FuseSkips()])
    assert operators(model) == ["Mul", "Neg", "RMSNormalization"]
