"""The rotary angles' positions are an input, and give what the sum gave."""

import numpy as np
import pytest

from nemo_trt.errors import BundleError
from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.take_positions import POSITIONS, TakePositions

from .computing import computed, graph_of, operators

pytestmark = pytest.mark.unit
TEXT = (
    "g (int64[2] first, int64[3] range) => (float[2, 3] y) <int64[1] one = {1}> "
    "{ f = Unsqueeze(first, one) p = Add(f, range) c = Cast<to = 1>(p) y = Cos(c) }"
)


def test_the_angles_are_those_of_the_input() -> None:
    first, steps = np.array([3, 7]), np.arange(3)
    expected = computed(graph_of(TEXT), first=first, range=steps)[0]
    model = graph_of(TEXT)
    apply(model, [TakePositions()])
    assert operators(model) == ["Cast", "Cos"] and model.graph.inputs[-1].name == POSITIONS
    given = {POSITIONS: first[:, None] + steps, "first": first, "range": steps}
    assert (computed(model, **given)[0] == expected).all()


def test_angles_of_something_else_are_refused() -> None:
    with pytest.raises(BundleError, match="write_indices plus a range"):
        apply(graph_of(TEXT.replace("Add", "Sub")), [TakePositions()])


def test_a_piece_without_angles_stays() -> None:
    model = graph_of("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    apply(model, [TakePositions()])
    assert [value.name for value in model.graph.inputs] == ["x"]
