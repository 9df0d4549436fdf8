"""Refuses weights that are NaN or infinite, at the speed of reading them.

In every number format a number of all-ones exponent is NaN or infinite (in E4M3 the one code of all
ones), and such bits are the largest integers of their sign. So two integer maxima tell, without a
temporary array.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.progress import Progress
from nemo_trt.tensors import LazyTensor, TensorRef

_BLOCK_BYTES = 2**20  # stays in a processor's own cache
_JOB_BYTES = 64 * 2**20
# Format -> signed and unsigned integers of its width, and the smallest positive bits that are no
# finite number.
_BITS: dict[DType, tuple[Any, Any, int]] = {
    DType.BF16: (np.int16, np.uint16, 0x7F80),
    DType.FP16: (np.int16, np.uint16, 0x7C00),
    DType.FP32: (np.int32, np.uint32, 0x7F800000),
    DType.FP8: (np.int8, np.uint8, 0x7F),
}


def finite_rows(tensor: LazyTensor, start: int, stop: int) -> NDArray[Any]:
    """Rows of a tensor, as `LazyTensor.rows`.

    Raises:
        CheckpointError: one of their numbers is NaN or infinite.
    """
    rows = tensor.rows(start, stop)
    _require(tensor, rows)
    return rows


def require_finite(tensors: Iterable[TensorRef], progress: Progress) -> None:
    """Read tensors in blocks of 1 MB, a thread a processor; the holes of sparse files are skipped.

    Raises:
        CheckpointError: a number is NaN or infinite, or a file became shorter.
    """
    jobs = [job for tensor in tensors for job in _jobs(tensor)]
    progress.phase(
        "check the weights for NaN", sum(stop - start for _, start, stop in jobs), "bytes"
    )

    def check(job: tuple[TensorRef, int, int]) -> None:
        tensor, start, stop = job
        block = np.empty(_BLOCK_BYTES, np.uint8)
        with tensor.path.open("rb", buffering=0) as file:
            for first, last in _data_ranges(file.fileno(), start, stop, tensor):
                _check_range(tensor, file.fileno(), first, last, block)
        progress.advance(stop - start)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for _ in pool.map(check, jobs):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _jobs(tensor: TensorRef) -> Iterator[tuple[TensorRef, int, int]]:
    """Ranges of bytes of the file, each a whole number of elements."""
    end = tensor.offset + tensor.num_bytes
    for start in range(tensor.offset, end, _JOB_BYTES):
        yield tensor, start, min(start + _JOB_BYTES, end)


def _data_ranges(file: int, start: int, stop: int, tensor: TensorRef) -> Iterator[tuple[int, int]]:
    """The parts of a range that are no holes, in whole elements."""
    while start < stop:
        try:
            data = os.lseek(file, start, os.SEEK_DATA)
            hole = os.lseek(file, data, os.SEEK_HOLE)
        except OSError as error:
            if os.fstat(file).st_size < stop:
                raise CheckpointError(f"{tensor.path} became shorter while it was read.") from None
            if error.errno != errno.ENXIO:  # a file system that cannot tell
                yield start, stop
            return  # else nothing but a hole up to the end
        size = tensor.dtype.itemsize
        first = start + (max(data, start) - start) // size * size
        last = min(stop, start + -(-(hole - start) // size) * size)
        if first >= stop:
            return
        yield first, last
        start = last


def _check_range(tensor: TensorRef, file: int, start: int, stop: int, block: NDArray[Any]) -> None:
    while start < stop:
        wanted = min(stop - start, _BLOCK_BYTES)
        filled = 0
        while filled < wanted:
            count = os.preadv(file, [block.data[filled:wanted]], start + filled)
            if not count:
                raise CheckpointError(f"{tensor.path} became shorter while it was read.")
            filled += count
        _require(tensor, block[:wanted])
        start += wanted


def _require(tensor: LazyTensor, values: NDArray[Any]) -> None:
    if not values.size or tensor.dtype not in _BITS:
        return
    signed, unsigned, limit = _BITS[tensor.dtype]
    bits = values.reshape(-1).view(signed)
    negative = limit | 1 << 8 * tensor.dtype.itemsize - 1
    if bits.max() >= limit or bits.view(unsigned).max() >= negative:
        raise not_finite(tensor.name)


def not_finite(name: str) -> CheckpointError:
    """What to say of a weight that holds a number that is none."""
    return CheckpointError(
        f"{name} must hold finite numbers, got NaN or infinity. The checkpoint is damaged, or its "
        "training diverged; fetch it again or take an earlier one."
    )
