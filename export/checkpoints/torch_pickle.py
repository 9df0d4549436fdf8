"""Unpickling what PyTorch pickles, with a list of names that it may ask for and nothing else.

An ordinary unpickler calls whatever a file names. This one knows a few names, most of which become
inert records here; any other is refused. PyTorch itself is not imported.
"""

import collections
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType

TORCH_DTYPES = {
    "bfloat16": DType.BF16,
    "float16": DType.FP16,
    "float32": DType.FP32,
    "int64": DType.INT64,
}
"""PyTorch's names of the number formats that weights have."""


class Record:
    """What a class that is not built here leaves behind: its arguments and its state."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = {**(state[0] or {}), **state[1]}  # of a class with __slots__
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def record_class(name: str) -> type[Record]:
    """A class of records that knows what it stands for."""
    return type(name.rpartition(".")[2], (Record,), {})


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

    class Unpickler(pickle.Unpickler):
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

    try:
        return Unpickler(io.BytesIO(data)).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes lead to
        raise CheckpointError(f"{where} is no intact pickle: {error!r}. Fetch it again.") from error
