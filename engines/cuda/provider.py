"""The border to ONNX Runtime's CUDA provider: is it here, and a session of it that never falls
back."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import onnxruntime as ort

from nemo_trt.engines.ort_graph import Weight, session_options
from nemo_trt.errors import BundleError, MachineError

CUDA = "CUDAExecutionProvider"
LEAST_VERSION = (1, 28)
"""Before it a cached Attention's causal mask is aligned to the wrong corner."""


class Provider(Protocol):
    """Where a lowered graph runs. Tests put ONNX Runtime's CPU provider behind it."""

    @property
    def memory(self) -> str:
        """ONNX Runtime's name of the memory that addresses lie in."""

    @property
    def name(self) -> str:
        """Of the execution provider."""

    def open(self, graph: bytes, weights: list[Weight], stream: int, *, use_graphs: bool) -> Any:
        """An `onnxruntime.InferenceSession`."""


@dataclass(frozen=True, slots=True)
class CudaProvider:
    """The CUDA provider of the installed ONNX Runtime.

    Raises:
        MachineError: it has none, or is too old.
    """

    memory: str = field(default="cuda", init=False)
    name: str = field(default=CUDA, init=False)

    def __post_init__(self) -> None:
        require_cuda(ort.__version__, ort.get_available_providers())

    def open(self, graph: bytes, weights: list[Weight], stream: int, *, use_graphs: bool) -> Any:
        """See `Provider.open`.

        Raises:
            BundleError: ONNX Runtime refuses the graph, or has no CUDA kernel for all of it.
            MachineError: CUDA's libraries or the GPU do not answer.
        """
        ort.preload_dlls()  # CUDA and cuDNN of the nvidia wheels, where those are installed
        options = session_options(weights)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        settings = {
            "user_compute_stream": str(stream),
            "enable_cuda_graph": str(int(use_graphs)),
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
        }
        session = open_session(graph, options, [(CUDA, settings)])
        if CUDA not in session.get_providers():
            raise MachineError(
                "ONNX Runtime must open the session on CUDA, got "
                f"{', '.join(session.get_providers())}. CUDA 13 and cuDNN 9 must be found: pip "
                "install 'onnxruntime-gpu[cuda,cudnn]'."
            )
        session.disable_fallback()
        return session


def require_cuda(version: str, providers: list[str]) -> None:
    """Check an ONNX Runtime's version and providers.

    Raises:
        MachineError: it has no CUDA provider, or is too old.
    """
    if CUDA not in providers:
        raise MachineError(
            f"ONNX Runtime must have its CUDA provider, got {version} with {', '.join(providers)}. "
            "Its GPU package takes the place of the other: pip uninstall -y onnxruntime "
            "onnxruntime-gpu && pip install 'nemo-trt[gpu]'."
        )
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < LEAST_VERSION:
        raise MachineError(
            f"ONNX Runtime must be at least {'.'.join(map(str, LEAST_VERSION))}, got {version}: it "
            "masks a cached attention wrongly. pip install -U onnxruntime-gpu."
        )


def open_session(graph: bytes, options: Any, providers: list[Any]) -> Any:
    """Make an ONNX Runtime session.

    Raises:
        BundleError: it refuses the graph.
        MachineError: CUDA does not answer.
    """
    try:
        return ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        words = str(error)
        if "CUDA" in words and ("failure" in words or "driver" in words or ".so" in words):
            raise MachineError(f"CUDA does not answer ONNX Runtime: {words}") from error
        raise BundleError(f"ONNX Runtime refuses the lowered graph: {words}") from error
