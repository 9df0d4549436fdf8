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


_MAX_DEPTH, _MAX_ITEMS = 8, 1024  # of one tuple with all tuples in it
_MAX_WALKED_PER_BYTE = 8  # items of tuples that are counted, for each byte of a pickle
# Opcodes that allocate, or hash each time, as many bytes as the file states.
_REFUSED_OPCODES = (pickle.BYTEARRAY8, pickle.LONG4)


class Record:
    """What a class that is not built here leaves behind: its state. Its arguments are dropped.

    The state is kept and never copied: a file may give one large state to many records.
    """

    state: Any = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getattr__(self, name: str) -> Any:
        state = self.state
        parts = state if isinstance(state, tuple) and len(state) == 2 else (None, state)
        for part in reversed(parts):  # two of a class with __slots__
            if isinstance(part, dict) and name in part:
                return part[name]
        raise AttributeError(f"{type(self).__name__} has no {name[:40]}")


class OrderedDict(collections.OrderedDict[Any, Any]):
    """An OrderedDict that a pickle fills item by item, as Python writes it since version 3."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Attributes, such as a state_dict's _metadata, are dropped."""


def size_of(lengths: Any = ()) -> tuple[int, ...]:
    """What stands for torch.Size."""
    found = tuple(lengths)
    if len(found) > 8 or not all(isinstance(n, int) and 0 <= n < 2**63 for n in found):
        raise ValueError("a torch.Size of other things than counts")
    return found


def record_class(name: str) -> type[Record]:
    """A class of records that knows what it stands for."""
    return type(name.rpartition(".")[2], (Record,), {})


class _Walked:
    """Counts the items of tuples in tuples, as many as hashing a tuple visits."""

    def __init__(self, where: str, num_bytes: int) -> None:
        self._where = where
        self._left = _MAX_ITEMS + _MAX_WALKED_PER_BYTE * num_bytes

    def require_small(self, whole: tuple[Any, ...]) -> None:
        """Refuse a tuple that is deep or, since it holds itself many times, large."""
        depth, items, level = 0, 0, [whole]
        while level:
            depth += 1
            items += sum(map(len, level))
            if depth > _MAX_DEPTH or items > min(_MAX_ITEMS, self._left):
                raise CheckpointError(f"{self._where} holds tuples that are too deep or too many.")
            level = [item for one in level for item in one if isinstance(item, tuple)]
        self._left -= items


def _bounded(build: Callable[[Any], None], walked: _Walked) -> Callable[[Any], None]:
    """An opcode that makes a tuple, of bounded size."""

    def checked(unpickler: Any) -> None:
        build(unpickler)
        walked.require_small(unpickler.stack[-1])

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
                return OrderedDict
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

    def build(unpickler: Any) -> None:
        state = unpickler.stack.pop()
        target = unpickler.stack[-1]
        if not isinstance(target, Record | OrderedDict):  # a function would keep it for ever
            raise CheckpointError(f"{where} gives a state to what has none. It may be hostile.")
        target.__setstate__(state)

    walked = _Walked(where, len(data))
    for opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        Unpickler.dispatch[opcode[0]] = _bounded(Unpickler.dispatch[opcode[0]], walked)
    Unpickler.dispatch[pickle.BUILD[0]] = build
    for opcode in _REFUSED_OPCODES:
        del Unpickler.dispatch[opcode[0]]
    try:
        return Unpickler(io.BytesIO(data)).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes lead to
        raise CheckpointError(
            f"{where} is no intact pickle: {type(error).__name__} {str(error)[:200]}. "
            "Fetch it again."
        ) from error
