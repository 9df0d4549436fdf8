"""The border to TensorRT: the one file that imports it, and turns its failures into our errors."""

import importlib
import importlib.metadata
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_trt.engines.machine import gpus
from nemo_trt.engines.targets import Target
from nemo_trt.errors import BuildError, MachineError

ToolkitName = Literal["tensorrt", "tensorrt-rtx"]
_LAST_LINES = 200
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolkit:
    """A TensorRT library. Both have one Python interface, the `api` module.

    Attributes:
        name: "tensorrt" or "tensorrt-rtx".
        version: of the library; plans load on exactly this one.
        api: the module.
    """

    name: ToolkitName
    version: str
    api: Any

    @property
    def builds_without_gpu(self) -> bool:
        """Whether a compute capability can be named instead of being there."""
        return self.name == "tensorrt-rtx"


def load_toolkit(name: ToolkitName) -> Toolkit:
    """Import a TensorRT library.

    Raises:
        MachineError: it is not installed, or it does not load.
    """
    try:
        api = importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise MachineError(
            f"The library {name} must be installed, got: {error}. "
            f"Install it: pip install '{REQUIREMENTS[name]}'."
        ) from error
    except OSError as error:  # a shared library that it needs is missing
        raise MachineError(f"The library {name} does not load: {error}.") from error
    return Toolkit(name=name, version=str(api.__version__), api=api)


def toolkit_for(
    target: Target, wanted: ToolkitName | Literal["auto"], command: str
) -> tuple[Toolkit, str | None]:
    """The toolkit that compiles for a target on this machine.

    "auto" is tensorrt where it is installed beside such a GPU, else tensorrt-rtx where that serves
    the target.

    Args:
        target: the GPU to compile for.
        wanted: a toolkit, or "auto".
        command: what to run on a machine that can, for the error.

    Returns:
        The toolkit, and the driver of the GPU that it compiles on, None where it needs none.

    Raises:
        MachineError: none can here; all that is missing, and the command for where it is not.
    """
    present = gpus()
    drivers = [gpu.driver for gpu in present if gpu.sm == target.sm]
    name = wanted
    if name == "auto":
        native = drivers and is_installed("tensorrt")
        name = "tensorrt-rtx" if "tensorrt-rtx" in target.toolkits and not native else "tensorrt"
    if name not in target.toolkits:
        raise MachineError(
            f"tensorrt-rtx does not serve {target.name} (sm_{target.sm}); only tensorrt does, on "
            f"such a GPU. Leave --toolchain out."
        )
    missing = [] if is_installed(name) else [f"the library {name}"]
    if name == "tensorrt" and not drivers:
        have = ", ".join(f"{gpu.name}, sm_{gpu.sm}" for gpu in present) or "none"
        missing.append(f"an sm_{target.sm} GPU (here: {have})")
    if missing:
        where = "on a machine with such a GPU: " if name == "tensorrt" else ""
        raise MachineError(
            f"Compiling for {target.name} with {name} needs {' and '.join(missing)}. Run "
            f"{where}pip install '{REQUIREMENTS[name]}' && {command}."
        )
    return load_toolkit(name), drivers[0] if name == "tensorrt" else None


REQUIREMENTS = {"tensorrt": "nemo-trt[gpu]", "tensorrt-rtx": "nemo-trt[rtx]"}
"""What to install for each."""


def is_installed(name: ToolkitName) -> bool:
    """Whether a library is installed; it is not imported."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class Log:
    """What TensorRT says: what it silently does stands here alone. Give `logger` to TensorRT.

    Memory: the last lines and errors, and the lines to keep; a verbose build writes gigabytes.

    Args:
        toolkit: whose log it is.
        keep: lines that hold one of these texts are all kept.
        write: gets every line as it comes.

    Attributes:
        kept: the lines that hold one of the texts.
        lines, errors: the last ones.
    """

    def __init__(
        self,
        toolkit: Toolkit,
        *,
        keep: Sequence[str] = (),
        write: Callable[[str], object] = lambda line: None,
    ) -> None:
        api: Any = toolkit.api
        kept: list[str] = []
        lines: deque[str] = deque(maxlen=_LAST_LINES)
        errors: deque[str] = deque(maxlen=_LAST_LINES)
        self.kept, self.lines, self.errors = kept, lines, errors

        class Logger(api.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                api.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                lines.append(message)
                write(message)
                if any(text in message for text in keep):
                    kept.append(message)
                if severity in (api.ILogger.ERROR, api.ILogger.INTERNAL_ERROR):
                    errors.append(message)

        self.logger = Logger()

    def failure(self, what: str) -> BuildError:
        """The error for a call that returned nothing: what TensorRT said last."""
        said = self.errors[-1] if self.errors else "TensorRT gave no reason"
        return BuildError(f"{what} failed: {said}")
