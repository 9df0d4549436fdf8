"""What a quick digest sees of a weight file, and what it leaves to the whole one."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nemo_trt.digest import SAMPLE_BYTES, file_digest, quick_digest

pytestmark = pytest.mark.unit
NUM_BYTES = 12 * SAMPLE_BYTES
MIDDLE = (NUM_BYTES - SAMPLE_BYTES) // 2


@pytest.mark.parametrize(
    ("at", "sampled"),
    [
        (0, True),
        (SAMPLE_BYTES - 1, True),
        (SAMPLE_BYTES, False),
        (MIDDLE - 1, False),
        (MIDDLE, True),
        (MIDDLE + SAMPLE_BYTES - 1, True),
        (NUM_BYTES - SAMPLE_BYTES - 1, False),
        (NUM_BYTES - SAMPLE_BYTES, True),
        (NUM_BYTES - 1, True),
    ],
)
@pytest.mark.parametrize("name", ["first", "last"])
def test_the_start_middle_and_end_of_every_tensor_are_sampled(
    name: str, at: int, sampled: bool, tmp_path: Path
) -> None:
    tensors = {one: np.zeros(NUM_BYTES, np.uint8).view(np.float16) for one in ("first", "last")}
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    quick, whole = quick_digest(path), file_digest(path)
    tensors[name].view(np.uint8)[at] = 1
    save_file(tensors, path)
    assert (quick_digest(path) != quick) is sampled
    assert file_digest(path) != whole
