"""Queries and keys rotated apart are what they were rotated together."""

import numpy as np
import pytest

from nemo_trt.errors import BundleError
from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.rotate_separately import RotateSeparately

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit
TEXT = (
    "g (float[1, 2, 16] q, float[1, 2, 8] k, float[1, 2, 4] c, float[1, 2, 4] s) "
    "=> (float[1, 2, 2, 8] a, float[1, 1, 2, 8] b) "
    "<int64[4] shape = {0, 0, 3, 8}, int64[1] zero = {0}, int64[1] two = {2}, "
    "int64[1] three = {3}, int64[1] one = {1}> "
    "{ j = Concat<axis = -1>(q, k) h = Reshape(j, shape) t = Transpose<perm = [0, 2, 1, 3]>(h) "
    "r = RotaryEmbedding(t, c, s) "
    "a = Slice(r, zero, two, one) b = Slice(r, two, three, one) }"
)


def test_both_are_what_they_were() -> None:
    feeds = {
        "q": random(1, 2, 16),
        "k": random(1, 2, 8),
        "c": random(1, 2, 4),
        "s": random(1, 2, 4),
    }
    expected = computed(graph_of(TEXT), **feeds)
    model = graph_of(TEXT)
    apply(model, [RotateSeparately()])
    assert operators(model) == sorted(["Reshape", "RotaryEmbedding", "Transpose"] * 2)
    for one, other in zip(computed(model, **feeds), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("was", "now"), [("Concat<axis = -1>(q, k)", "Identity(q)"), ("b = Slice(r", "b = Slice(t")]
)
def test_another_form_is_refused(was: str, now: str) -> None:
    with pytest.raises(BundleError, match="Concat of queries and keys"):
        apply(graph_of(TEXT.replace(was, now)), [RotateSeparately()])
