"""YAML of checkpoints: how deep it may be, in text that any parser takes."""

import pytest

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints.text_files import parse_yaml

pytestmark = pytest.mark.unit


def nested(levels: int) -> bytes:
    """A mapping whose one value is a list of a list ..., `levels` collections in all."""
    return b"a: " + b"[" * (levels - 1) + b"]" * (levels - 1)


def test_fifty_levels_are_read_and_one_more_is_refused() -> None:
    assert parse_yaml(nested(50), "x") != {}
    with pytest.raises(CheckpointError, match="more than 50 levels"):
        parse_yaml(nested(51), "x")


def test_collections_beside_each_other_are_no_levels() -> None:
    found = parse_yaml(b"a: [" + b"[1]," * 60 + b"]\nb: {" + b"c: {}" + b"}", "x")
    assert found == {"a": [[1]] * 60, "b": {"c": {}}}
