"""Opens a session: the one place that chooses what runs a bundle."""

from pathlib import Path

from nemo_trt.bundle import Bundle
from nemo_trt.errors import RequestError
from nemo_trt.where import CPU, Where

from .ort_session import OrtSession
from .session import Session


def open_session(
    bundle: Bundle | Path,
    where: Where | str = CPU,
    *,
    max_batch: int | None = None,
    max_seq_len: int | None = None,
    threads: int | None = None,
) -> Session:
    """Open a bundle on the CPU, on CUDA, or on one of its TensorRT engines.

    Args:
        bundle: an open bundle, or its folder.
        where: see `Where`.
        max_batch: rows of the cache, by default 1. An engine has the rows that it was built with.
        max_seq_len: tokens a row at most, by default the model's context length, on CUDA as far as
            memory allows. An engine has the length that it was built with.
        threads: compute threads, on the CPU alone; by default one per physical core.

    Raises:
        BundleError: the bundle is missing or damaged.
        BuildError: it has no such engine, or one of another bundle or TensorRT.
        MachineError: this machine lacks what it needs.
        RequestError: an option is given that does not apply there, or is out of range.
    """
    where = Where.of(where)
    if threads is not None and where.kind != "cpu":
        raise RequestError(f"threads must be left out on {where}: the CPU alone has them.")
    bundle = Bundle.open(bundle)
    if where.kind == "engine":
        if (max_batch, max_seq_len) != (None, None):
            raise RequestError(
                f"Rows and lengths must be left out: engine {where.engine} has those that it was "
                "built with."
            )
        from .trt.session import TensorRtSession

        return TensorRtSession.open(bundle, where.engine)
    rows = 1 if max_batch is None else max_batch
    if where.kind == "cuda":
        from .cuda.session import CudaSession

        return CudaSession.open(bundle, max_batch=rows, max_seq_len=max_seq_len)
    return OrtSession.open(bundle, max_batch=rows, max_seq_len=max_seq_len, threads=threads)
