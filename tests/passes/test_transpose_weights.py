"""A transposed weight is stored transposed."""

import numpy as np
import pytest

from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.transpose_weights import TransposeWeights

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit


def test_products_are_the_same_and_another_reader_keeps_the_weight() -> None:
    text = (
        "g (float[2, 4] x, int64[1] i) => (float[2, 3] y, float[1, 4] z) "
        "{ t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) z = Gather(w, i) }"
    )
    w, x, i = random(3, 4), random(2, 4), np.array([2])
    expected = computed(graph_of(text, w=w), x=x, i=i)
    model = graph_of(text, w=w)
    apply(model, [TransposeWeights()])
    assert operators(model) == ["Gather", "MatMul"]
    shapes = {name: list(one.shape or ()) for name, one in model.graph.initializers.items()}
    assert shapes == {"t": [4, 3], "w": [3, 4]}
    for one, other in zip(computed(model, x=x, i=i), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_what_is_computed_is_still_transposed() -> None:
    model = graph_of("g (float[2, 3] x) => (float[3, 2] y) { y = Transpose<perm = [1, 0]>(x) }")
    apply(model, [TransposeWeights()])
    assert operators(model) == ["Transpose"]
