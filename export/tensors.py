"""A checkpoint's tensor as PyTorch has it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_trt.precision import DType
from nemo_trt.tensors import LazyTensor


def load(ref: LazyTensor, *, rows: Sequence[int] | None = None) -> Tensor:
    """A copy of a tensor, or of some of its rows, in the dtype that it is stored in."""
    if rows is None:
        copy = np.array(ref.read())
    elif isinstance(rows, range) and rows.step == 1:
        copy = ref.rows(rows.start, rows.stop)
    else:
        copy = np.stack([ref.rows(row, row + 1)[0] for row in rows])
    if ref.dtype is DType.BF16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)
