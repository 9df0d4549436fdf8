"""Unpickling what PyTorch pickles, with a list of names that it may ask for and nothing else.

An ordinary unpickler calls whatever a file names. This one knows a few names, most of which become
inert records here; any other is refused. PyTorch itself is not imported.
"""

import collections
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType

TORCH_DTYPES = {
    "bfloat16": DType.BF16,
    "float16": DType.FP16,
    "float32": DType.FP32,
    "int64": DType.INT64,
}
"""PyTorch's names of the number formats that weights have."""


_MAX_DEPTH, _MAX_INNER = 8, 4096  # of tuples in tuples


class Record:
    """What a class that is not built here leaves behind: its arguments and its state."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = {**(state[0] or {}), **state[1]}  # of a class with __slots__
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def size_of(lengths: Any = ()) -> tuple[int, ...]:
    """What stands for torch.Size."""
    found = tuple(lengths)
    if len(found) > 8 or not all(isinstance(n, int) and 0 <= n < 2**63 for n in found):
        raise ValueError("a torch.Size of other things than counts")
    return found


def record_class(name: str) -> type[Record]:
    """A class of records that knows what it stands for."""
    return type(name.rpartition(".")[2], (Record,), {})


def _bounded(build: Callable[[Any], None], where: str) -> Callable[[Any], None]:
    """An opcode that makes a tuple: one of itself, many levels deep, takes for ever to hash."""

    def checked(unpickler: Any) -> None:
        build(unpickler)
        depth, level = 0, [unpickler.stack[-1]]
        while level := [item for one in level for item in one if isinstance(item, tuple)]:
            depth += 1
            if depth > _MAX_DEPTH or len(level) > _MAX_INNER:
                raise CheckpointError(f"{where} holds tuples that are too deep or too many.")

    return checked


def unpickle(
    data: bytes,
    where: str,
    names: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Unpickle `data`.

    Args:
        names: "module.name" -> what stands for it.
        persistent: makes an object of a persistent id.

    Raises:
        CheckpointError: the data are damaged, or ask for a name that is not in `names`.
    """

    # Python's own implementation: C's allocates a memo of the size that the file states.
    class Unpickler(pickle._Unpickler):
        dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            wanted = f"{module}.{name}"
            if wanted == "collections.OrderedDict":
                return collections.OrderedDict
            if wanted in names:
                return names[wanted]
            raise CheckpointError(
                f"{where} asks for {wanted}, which is not among the names that its kind needs. "
                "It may be hostile: nothing of it was run."
            )

        def persistent_load(self, pid: Any) -> Any:
            if persistent is None:
                raise CheckpointError(f"{where} holds a persistent id, which its kind has not.")
            return persistent(pid)

    for opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        Unpickler.dispatch[opcode[0]] = _bounded(Unpickler.dispatch[opcode[0]], where)
    try:
        return Unpickler(io.BytesIO(data)).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes lead to
        raise CheckpointError(
            f"{where} is no intact pickle: {type(error).__name__} {str(error)[:200]}. "
            "Fetch it again."
        ) from error
