"""Products read a weight as it is stored."""

import numpy as np
import pytest

from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.multiply_transposed import MultiplyTransposed

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit


def test_a_transposed_weight_is_read_as_it_is_stored() -> None:
    text = (
        "g (float[2, 4] x, float[3, 4] z) => (float[2, 3] y, float[2, 3] u) "
        "{ t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) "
        "r = Transpose<perm = [1, 0]>(z) u = MatMul(x, r) }"
    )
    w, x, z = random(3, 4), random(2, 4), random(3, 4)
    expected = computed(graph_of(text, w=w), x=x, z=z)
    model = graph_of(text, w=w)
    apply(model, [MultiplyTransposed()])
    assert operators(model) == ["FusedMatMul", "MatMul", "Transpose"]
    for one, other in zip(computed(model, x=x, z=z), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
