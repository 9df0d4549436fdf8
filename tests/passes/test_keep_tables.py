"""A table that is only gathered from stays in BF16, and only then."""

import numpy as np
import pytest

from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.keep_tables import KEPT, KeepTables
from nemo_trt.passes.promote_types import PromoteTypes
from nemo_trt.passes.weights import weight_of

from .computing import bf16, computed, graph_of, operators

pytestmark = pytest.mark.unit
TEXT = "g (int64[2] i) => (bfloat16[2, 4] y) { r = Gather(w, i) y = Neg(r) }"
TIED = (
    "g (int64[2] i) => (bfloat16[2, 3] y) "
    "{ r = Gather(w, i) t = Transpose<perm = [1, 0]>(w) y = MatMul(r, t) }"
)


def test_gathered_rows_are_cast_and_the_table_is_not() -> None:
    w, i = bf16(3, 4), np.array([2, 0])
    model = graph_of(TEXT, w=w)
    apply(model, [KeepTables(), PromoteTypes()])
    assert operators(model) == ["Cast", "Gather", "Neg"]
    table = weight_of(model.graph.initializers["w"])
    assert table is not None and table.read().dtype == np.uint16
    assert (computed(model, i=i)[0] == -w[i].astype(np.float32)).all()


def test_a_table_that_a_product_reads_too_is_promoted() -> None:
    w, i = bf16(3, 4), np.array([2, 0])
    model = graph_of(TIED, w=w)
    apply(model, [KeepTables(), PromoteTypes()])
    assert not model.graph.initializers["w"].meta.get(KEPT)
    wide = w.astype(np.float32)
    np.testing.assert_allclose(computed(model, i=i)[0], wide[i] @ wide.T, rtol=1e-5)
