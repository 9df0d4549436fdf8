"""A checkpoint's tensor as PyTorch has it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_trt.precision import DType
from nemo_trt.safetensors import TensorRef


def load(ref: TensorRef, *, rows: Sequence[int] | None = None) -> Tensor:
    """A copy of a tensor, or of some of its rows, in the dtype that it is stored in."""
    array = ref.read()
    copy = np.array(array if rows is None else array[list(rows)])
    if ref.dtype is DType.BF16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)
