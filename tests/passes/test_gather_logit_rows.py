"""Rows of all tokens in one line are gathered, as GatherND gathered rows of each batch row."""

import numpy as np
import pytest

from nemo_trt.errors import BundleError
from nemo_trt.passes.gather_logit_rows import LOGIT_ROWS, GatherLogitRows
from nemo_trt.passes.graph_pass import apply

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit
TEXT = (
    "g (float[2, 3, 4] x, int64[2, 1, 1] logit_indices) => (float[2, 1, 4] y) "
    "{ y = GatherND<batch_dims = 1>(x, logit_indices) }"
)


def test_the_same_rows_are_gathered() -> None:
    x, indices = random(2, 3, 4), np.array([[[2]], [[0]]])
    expected = computed(graph_of(TEXT), x=x, logit_indices=indices)[0]
    model = graph_of(TEXT)
    apply(model, [GatherLogitRows()])
    assert operators(model) == ["Gather", "Reshape"]
    assert [value.name for value in model.graph.inputs] == ["x", LOGIT_ROWS]
    rows = np.arange(2)[:, None] * 3 + indices[:, 0]
    assert (computed(model, x=x, **{LOGIT_ROWS: rows})[0] == expected).all()


@pytest.mark.parametrize("shape", ["[2, 3, C]", ""])
def test_values_of_unknown_width_are_refused(shape: str) -> None:
    with pytest.raises(BundleError, match="one GatherND before the head"):
        apply(graph_of(TEXT.replace("[2, 3, 4]", shape)), [GatherLogitRows()])


def test_two_are_refused() -> None:
    twice = TEXT.replace("{ y =", "{ z = GatherND<batch_dims = 1>(x, logit_indices) y =")
    with pytest.raises(BundleError, match="one GatherND before the head"):
        apply(graph_of(twice), [GatherLogitRows()])
