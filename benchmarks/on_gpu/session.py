"""Opens our session: on CUDA, or in a tiny run on the CPU."""

from nemo_trt.engines.open import open_session
from nemo_trt.engines.session import Session
from on_gpu.scale import Work


def opened(work: Work, *, max_batch: int, max_seq_len: int) -> Session:
    """A session of the bundle.

    Raises:
        MachineError: onnxruntime-gpu or the GPU is missing; the stage is skipped with its words.
    """
    backend = "cpu" if work.scale.tiny else "cuda"
    return open_session(work.checkpoint, backend, max_batch=max_batch, max_seq_len=max_seq_len)
