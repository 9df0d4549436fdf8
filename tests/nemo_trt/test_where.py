"""`Where`: one value for what runs a bundle, and its text."""

import pytest

from nemo_trt.errors import RequestError
from nemo_trt.where import CPU, CUDA, Where

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "where", "option"),
    [
        ("cpu", CPU, ""),
        ("cuda", CUDA, " --backend cuda"),
        ("h100-fp8", Where("engine", "h100-fp8"), " --engine h100-fp8"),
    ],
)
def test_its_text_reads_back(text: str, where: Where, option: str) -> None:
    assert Where.of(text) == Where.of(where) == where
    assert str(where) == text and where.option == option


def test_an_engine_has_a_name_and_nothing_else_has() -> None:
    for kind, name in (("engine", ""), ("cpu", "l4-bf16")):
        with pytest.raises(RequestError, match="by its name"):
            Where(kind, name)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="by its name"):
        Where.of("")
