"""Products of one input become one, with the same numbers, unless their scales differ."""

import ml_dtypes
import numpy as np
import pytest

from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.merge_products import MergeProducts

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit
# The output of a product is named PLACE.proj.MatMul in a bundle; the text form knows no dots.
TEXT = (
    "g (float[1, 2, 4] x) => (float[1, 2, 6] a, float[1, 2, 4] b, float[1, 2, 4] c) "
    "{ ta = Transpose<perm = [1, 0]>(u) a = MatMul(x, ta) tb = Transpose<perm = [1, 0]>(v) "
    "b = MatMul(x, tb) n = Neg(x) tc = Transpose<perm = [1, 0]>(w) c = MatMul(n, tc) }"
)


def test_products_of_one_input_are_one_product() -> None:
    weights = {"u": random(6, 4), "v": random(4, 4), "w": random(4, 4)}
    x = random(1, 2, 4)
    expected = computed(graph_of(TEXT, **weights), x=x)
    model = graph_of(TEXT, **weights)
    apply(model, [MergeProducts()])
    assert operators(model).count("MatMul") == 2 and "Split" in operators(model)
    for one, other in zip(computed(model, x=x), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "products"), [(0.5, 1), (0.25, 2)])
def test_fp8_products_are_merged_if_their_scales_are_equal(scale: float, products: int) -> None:
    text = (
        "g (float[1, 2, 4] x) => (float[1, 2, 6] a, float[1, 2, 4] b) "
        f"<float s = {{0.5}}, float z = {{{scale}}}> "
        "{ da = DequantizeLinear(u, s) ta = Transpose<perm = [1, 0]>(da) a = MatMul(x, ta) "
        "db = DequantizeLinear(v, z) tb = Transpose<perm = [1, 0]>(db) b = MatMul(x, tb) }"
    )
    weights = {
        "u": random(6, 4).astype(ml_dtypes.float8_e4m3fn),
        "v": random(4, 4).astype(ml_dtypes.float8_e4m3fn),
    }
    x = random(1, 2, 4)
    expected = computed(graph_of(text, **weights), x=x)
    model = graph_of(text, **weights)
    apply(model, [MergeProducts()])
    assert operators(model).count("MatMul") == products
    for one, other in zip(computed(model, x=x), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_fp8_products_with_scales_by_row_are_not_merged() -> None:
    """Not even equal ones: a row of the merged weight would have another row's scale."""
    text = (
        "g (float[1, 2, 4] x) => (float[1, 2, 4] a, float[1, 2, 4] b) "
        "<float[4] s = {0.5, 1.0, 2.0, 4.0}, float[4] z = {0.5, 1.0, 2.0, 4.0}> "
        "{ da = DequantizeLinear<axis = 0>(u, s) ta = Transpose<perm = [1, 0]>(da) "
        "a = MatMul(x, ta) db = DequantizeLinear<axis = 0>(v, z) "
        "tb = Transpose<perm = [1, 0]>(db) b = MatMul(x, tb) }"
    )
    weights = {name: random(4, 4).astype(ml_dtypes.float8_e4m3fn) for name in ("u", "v")}
    x = random(1, 2, 4)
    expected = computed(graph_of(text, **weights), x=x)
    model = graph_of(text, **weights)
    apply(model, [MergeProducts()])
    assert operators(model).count("MatMul") == 2
    for one, other in zip(computed(model, x=x), expected, strict=True):
        np.testing.assert_array_equal(one, other)
