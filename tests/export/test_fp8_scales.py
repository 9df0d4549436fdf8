"""The shapes of scales that an FP8 weight may have beside it, without any model or torch."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints.fp8 import split_off_scales
from nemo_trt.precision import DType
from nemo_trt.safetensors import read_layout
from nemo_trt.tensors import LazyTensor

pytestmark = pytest.mark.unit
N = 4


def stored(folder: Path, scale_shape: tuple[int, ...]) -> dict[str, LazyTensor]:
    """A square FP8 weight, the scale of its input, and a scale of some shape."""
    path = folder / "x.safetensors"
    scale = np.arange(1, 1 + int(np.prod(scale_shape)), dtype=np.float32).reshape(scale_shape)
    arrays = {"w": np.zeros((N, N), np.uint8), "s": scale, "i": np.ones((), np.float32)}
    save_file(arrays, path)
    refs = _as_fp8(path)
    return {"p.weight": refs["w"], "p.weight_scale": refs["s"], "p.input_scale": refs["i"]}


def _as_fp8(path: Path) -> dict[str, LazyTensor]:
    """numpy has no FP8: the bytes are stored as another type, and its name is changed."""
    data = path.read_bytes().replace(b'"U8"', b'"F8_E4M3"', 1)
    grown = len(data) - path.stat().st_size
    header = int.from_bytes(data[:8], "little") + grown
    path.write_bytes(header.to_bytes(8, "little") + data[8:])
    return dict(read_layout(path))


@pytest.mark.parametrize(
    ("shape", "expected"), [((), ()), ((1,), ()), ((N,), (N,)), ((N, 1), (N,))]
)
def test_one_scale_or_one_a_row_is_taken_over(
    shape: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path
) -> None:
    weights, scales = split_off_scales(stored(tmp_path, shape), tmp_path)
    assert list(weights) == ["p.weight"] and weights["p.weight"].dtype is DType.FP8
    assert scales["p.weight"].weight.shape == ((N,) if N in shape else ())
    np.testing.assert_array_equal(
        scales["p.weight"].weight.reshape(-1), np.arange(1, 1 + int(np.prod(shape)))
    )


@pytest.mark.parametrize("shape", [(1, N), (2, 2), (2,), (N, N)])
def test_scales_of_columns_and_of_blocks_are_refused(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="one number or one a row"):
        split_off_scales(stored(tmp_path, shape), tmp_path)
