"""Where ONNX Runtime runs a bundle: on the CPU, or on CUDA."""

from pathlib import Path
from typing import Literal

from nemo_trt.errors import RequestError

from .ort_session import OrtSession
from .session import Session

Backend = Literal["cpu", "cuda"]


def open_session(
    bundle: Path,
    backend: Backend = "cpu",
    *,
    max_batch: int = 1,
    max_seq_len: int | None = None,
    threads: int | None = None,
) -> Session:
    """Open a bundle on a backend.

    Args:
        bundle, max_batch, max_seq_len, threads: see `OrtSession.open` and `CudaSession.open`.
            Threads are of the CPU alone.

    Raises:
        BundleError: the bundle is damaged.
        MachineError: this machine lacks what the backend needs.
        RequestError: there is no such backend, or threads are given for CUDA.
    """
    if backend == "cpu":
        return OrtSession.open(
            bundle, max_batch=max_batch, max_seq_len=max_seq_len, threads=threads
        )
    if backend != "cuda":
        raise RequestError(f"backend must be cpu or cuda, got {backend}.")
    if threads is not None:
        raise RequestError("threads must be left out with the cuda backend.")
    from .cuda.session import CudaSession

    return CudaSession.open(bundle, max_batch=max_batch, max_seq_len=max_seq_len)


def backend_of(session: Session) -> Backend:
    """Where ONNX Runtime runs a session; an engine counts as "cpu", its verdict lies elsewhere."""
    return "cuda" if session.describe().get("provider") == "CUDAExecutionProvider" else "cpu"
