"""Which cache an attention reads is known only of the form that `read_by_group` makes."""

from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt.engines.trt.grouped import cache_read
from nemo_trt.errors import BuildError

pytestmark = pytest.mark.unit


class Layer:
    """A layer of a network, as far as it is looked at."""

    def __init__(self, kind: str, *inputs: str, axis: int = 2) -> None:
        self.type, self.axis, self.num_inputs = kind, axis, len(inputs)
        self._inputs = inputs

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(name=self._inputs[index])


API = SimpleNamespace(
    LayerType=SimpleNamespace(CONCATENATION="concatenation", SLICE="slice"),
    IConcatenationLayer=Layer,
)
KEYS = SimpleNamespace(name="longer")


def network(longer: Layer, row: Layer) -> dict[str, Any]:
    return {"longer": longer, "row": row}


def test_the_cache_before_its_own_token_is_the_one_that_is_read() -> None:
    longer = Layer("concatenation", "present.0.key", "row")
    found = cache_read(API, KEYS, network(longer, Layer("slice", "present.0.key")))
    assert found == "present.0.key"


@pytest.mark.parametrize(
    ("longer", "row"),
    [
        (Layer("concatenation", "present.0.key", "row", axis=3), Layer("slice", "present.0.key")),
        (Layer("concatenation", "present.0.key", "row"), Layer("slice", "present.1.key")),
        (Layer("concatenation", "present.0.key", "row"), Layer("shuffle", "present.0.key")),
        (Layer("concatenation", "present.0.key"), Layer("slice", "present.0.key")),
        (Layer("elementwise", "present.0.key", "row"), Layer("slice", "present.0.key")),
    ],
    ids=["another axis", "another cache's token", "no slice", "nothing appended", "no join"],
)
def test_another_form_is_refused(longer: Layer, row: Layer) -> None:
    with pytest.raises(BuildError, match="one row of it"):
        cache_read(API, KEYS, network(longer, row))
