"""Places a checkpoint's weight files in a bundle and points the graph's initializers into them."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from nemo_trt.errors import ExportError
from nemo_trt.precision import PRECISIONS, DType
from nemo_trt.progress import Progress
from nemo_trt.safetensors import write_stream
from nemo_trt.tensors import LazyTensor, TensorRef, row_ranges

from .checkpoints import Checkpoint
from .finite import finite_rows

_COPY_BYTES = 64 * 2**20
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def copy_file(source: Path, target: Path, progress: Progress) -> None:
    """Copy a file inside the kernel (a reflink where the file system has it)."""
    remaining = source.stat().st_size
    with source.open("rb") as reader, target.open("wb") as writer:
        while remaining:
            try:
                copied = os.copy_file_range(
                    reader.fileno(), writer.fileno(), min(remaining, _COPY_BYTES)
                )
            except (OSError, AttributeError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_KERNEL_COPY:
                    raise
                copied = _copy_through_memory(reader.fileno(), writer.fileno())
            if not copied:
                raise ExportError(f"{source} became shorter while it was copied. Export again.")
            remaining -= copied
            progress.advance(copied)


def _copy_through_memory(reader: int, writer: int) -> int:
    """One piece of a copy where the kernel cannot: both offsets advance."""
    chunk = memoryview(os.read(reader, 4 * 2**20))
    copied = 0
    while copied < len(chunk):
        copied += os.write(writer, chunk[copied:])
    return copied


def write_weights(checkpoint: Checkpoint, target: Path, progress: Progress) -> None:
    """Write every weight to one safetensors file, in the order of `config.tensors()`.

    Memory: a few pieces of 8 MB.
    """
    progress.phase("write the weights", checkpoint.num_bytes, "bytes")
    write_tensors(checkpoint.ordered_tensors, target, progress, rows=finite_rows)


def write_tensors(
    tensors: Sequence[LazyTensor],
    target: Path,
    progress: Progress,
    rows: Callable[[LazyTensor, int, int], NDArray[Any]] = lambda t, start, stop: t.rows(
        start, stop
    ),
) -> None:
    """Write tensors to a safetensors file, in their order; `rows` reads them."""
    layout = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
    write_stream(target, layout, pieces(tensors, rows, progress))


def pieces(
    tensors: Iterable[LazyTensor],
    make: Callable[[LazyTensor, int, int], NDArray[Any]],
    progress: Progress,
) -> Iterator[memoryview]:
    """The bytes of tensors in order, `make` of a tensor's rows each, by a thread a processor."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, Future[NDArray[Any]]]] = deque()
        for tensor in tensors:
            for start, stop in row_ranges(tensor):
                job = pool.submit(make, tensor, start, stop)
                waiting.append((tensor.row_bytes * (stop - start), job))
                if len(waiting) > 2 * threads:
                    yield _done(*waiting.popleft(), progress)
        while waiting:
            yield _done(*waiting.popleft(), progress)


def _done(source_bytes: int, job: Future[NDArray[Any]], progress: Progress) -> memoryview:
    piece = job.result()
    progress.advance(source_bytes)
    return memoryview(piece.reshape(-1).view("uint8").data)


def attach_weights(
    model: ir.Model,
    tensors: Mapping[str, TensorRef],
    locations: Mapping[Path, PurePosixPath],
) -> None:
    """Point every weight at its bytes; a weight stored in another dtype is cast in the graph.

    Args:
        model: the traced graph, its weight initializers named like `tensors`.
        tensors: every weight as it is stored.
        locations: weight file -> its path relative to the bundle.
    """
    graph = model.graph
    for name, ref in tensors.items():
        value = graph.initializers[name]
        wanted, stored = value.dtype, ir.DataType(ref.dtype.onnx_code)
        assert wanted is not None
        value.const_value = ir.ExternalTensor(
            str(locations[ref.path]),
            ref.offset,
            ref.num_bytes,
            stored,
            shape=ir.Shape(ref.shape),
            name=name,
        )
        if stored != wanted:
            value.type = ir.TensorType(stored)  # a new one: repeated layers share theirs
            _cast_readers(graph, value, wanted)


def _cast_readers(graph: ir.Graph, weight: ir.Value, wanted: ir.DataType) -> None:
    """Cast a weight where it is read: after a Gather (the rows alone), else before the reader."""
    whole: ir.Node | None = None
    for node, index in list(weight.uses()):
        if node.op_type == "Gather":
            rows = node.outputs[0]
            readers = list(rows.uses())
            rows.type = weight.type
            cast = _cast(rows, wanted, f"{node.name}.Cast")
            graph.insert_after(node, cast)
            for reader, position in readers:
                reader.replace_input_with(position, cast.outputs[0])
        else:
            if whole is None:
                whole = _cast(weight, wanted, f"{weight.name}.Cast")
                graph.insert_before(node, whole)
            node.replace_input_with(index, whole.outputs[0])


def _cast(value: ir.Value, wanted: ir.DataType, name: str) -> ir.Node:
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(wanted))
    return ir.node("Cast", [value], attributes={"to": wanted.value}, outputs=[output], name=name)


def require_precision(checkpoint: Checkpoint, precision: DType | None) -> DType:
    """The precision of a checkpoint's bundle: the one that is named, or the one it is stored in.

    Raises:
        ExportError: it is not one that bundles have, or must be named.
    """
    chosen = precision or stored_precision(checkpoint.tensors)
    if chosen not in PRECISIONS:
        stored = ", ".join(checkpoint.stored_dtypes)
        raise ExportError(
            f"--precision must be named for a checkpoint of mixed dtypes ({stored}). "
            f"Choose one of {', '.join(PRECISIONS)}."
        )
    return chosen


def stored_precision(tensors: Mapping[str, LazyTensor]) -> DType | None:
    """The dtype that all matrices share, or None. (Norms of another dtype are common.)"""
    dtypes = {ref.dtype for ref in tensors.values() if len(ref.shape) == 2}
    return dtypes.pop() if len(dtypes) == 1 else None
