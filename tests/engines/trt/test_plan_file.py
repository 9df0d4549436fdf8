"""A plan is read once: what TensorRT loads is what was digested."""

from pathlib import Path

import pytest

from nemo_trt.digest import file_digest
from nemo_trt.engines.trt.runtime import map_verified
from nemo_trt.errors import BuildError

pytestmark = pytest.mark.unit


def test_a_plan_of_its_record_is_mapped(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"plan" * 1000)
    with map_verified(plan, file_digest(plan)) as data:
        assert bytes(data) == plan.read_bytes()
        assert memoryview(data).readonly


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"plaN" + b"plan" * 999, "was altered after it was built"),
        (b"plan", "was altered after it was built"),
        (b"", "cannot be read: cannot mmap an empty file"),
    ],
)
def test_an_altered_plan_is_never_handed_to_tensorrt(
    tmp_path: Path, content: bytes, words: str
) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"plan" * 1000)
    digest = file_digest(plan)
    plan.write_bytes(content)
    with pytest.raises(BuildError, match=words), map_verified(plan, digest):
        raise AssertionError("handed over")


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(BuildError, match="Build the engine again"),
        map_verified(tmp_path / "no", ""),
    ):
        raise AssertionError("handed over")
