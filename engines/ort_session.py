"""The `Session` on ONNX Runtime's CPU provider, with the cache bound in place."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.choices import require_choice
from nemo_trt.config import ModelConfig
from nemo_trt.errors import BundleError, MachineError, RequestError
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.precision import DType
from nemo_trt.where import CPU, Where

from .base_session import BaseSession
from .ort_graph import Weight, session_options
from .ort_lowering import lower, lower_model
from .session import CacheBlock, Logits, SessionInfo, StepInputs, Tokens
from .step_result import StepResult
from .step_thread import StepThread

_GROWTH_TOKENS = 256


class OrtSession(BaseSession):
    """Runs a bundle on the CPU. See `Session` for the meaning of its attributes and methods.

    BF16 bundles compute in fp32, so do fp32 ones; fp16 bundles compute in fp16; FP8 bundles round
    where their graph says so and compute in fp32 between. The cache grows in steps, because
    attention's cost grows with what is bound. A step that is launched runs in a thread, without
    Python's lock.
    """

    where: Where = CPU
    overlaps = True
    tokens_per_read = 4  # measured: 8 rows decode 3.5 times as many tokens a second as one
    longer = "Open the session with a larger max_seq_len."

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_batch: int,
        max_seq_len: int | None,
        threads: int | None,
        rounding: DType | None = None,
    ) -> None:
        compute = DType.FP16 if bundle.precision is DType.FP16 else DType.FP32
        fp8 = bundle.precision is DType.FP8  # rounds to FP8 where the graph says so
        if rounding is not None:
            require_choice("rounding", rounding, (DType.BF16, DType.FP16))
            if bundle.precision.base is not DType.BF16:
                raise RequestError(
                    "A bundle whose rounding is rehearsed must be bf16 or fp8, got "
                    f"{bundle.precision}."
                )
        super().__init__(
            bundle,
            max_batch=max_batch,
            max_seq_len=max_seq_len,
            compute_precision=bundle.precision if fp8 or rounding else compute,
        )
        self._cache_dtype = np.dtype(compute.numpy_name)
        self._session: Any = _open(bundle.path, threads, rounding=rounding)
        self._caches: dict[str, NDArray[Any]] = {}  # past name -> (B, K, T, D)
        self._bindings: dict[tuple[int, int], Any] = {}  # (first row, rows) -> IO binding
        self._buffers: dict[tuple[str, tuple[int, ...]], tuple[NDArray[Any], Any]] = {}
        self._closing.callback(self._free)
        self._thread = StepThread()
        self._closing.callback(self._thread.close)
        self.bind(1)

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path,
        *,
        max_batch: int = 1,
        max_seq_len: int | None = None,
        threads: int | None = None,
        rounding: DType | None = None,
    ) -> Self:
        """Open a bundle.

        Args:
            bundle: an open bundle, or its folder.
            max_batch: rows of the cache.
            max_seq_len: tokens a row at most; by default the model's context length. Memory is
                taken as it is needed, up to this.
            threads: ONNX Runtime's compute threads; by default one per physical core.
            rounding: round where a BF16 or FP8 engine does whose attention and cache are in this
                dtype, BF16 or FP16, to rehearse its errors. Slow.

        Raises:
            BundleError: the bundle is damaged.
            MachineError: ONNX Runtime cannot run it here.
            RequestError: `rounding` is another dtype, or the bundle has no such engine.
        """
        return cls(
            Bundle.open(bundle),
            max_batch=max_batch,
            max_seq_len=max_seq_len,
            threads=threads,
            rounding=rounding,
        )

    def _grow(self, capacity: int) -> None:
        wanted = max(capacity, self.capacity + self.capacity // 8)
        self._resize(min(-(-wanted // _GROWTH_TOKENS) * _GROWTH_TOKENS, self.max_seq_len))

    def _resize(self, grown: int) -> None:
        shape = (self.max_batch, self.config.num_kv_heads, grown, self.config.head_dim)
        names = [name for name, _ in contract.cache_names(self.config.num_layers)]
        # All or none; their memory is taken page by page as they are filled. Zeros: a masked NaN
        # would still spread.
        grown_caches = {name: np.zeros(shape, self._cache_dtype) for name in names}
        self._bindings.clear()  # they hold the old caches
        for name, cache in grown_caches.items():
            if name in self._caches:
                cache[:, :, : self.capacity] = self._caches[name]
            self._caches[name] = cache
        self.capacity = grown

    def _step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        rows = len(input_ids)
        binding = self._binding(first_row, rows)
        for name, array in (
            (contract.INPUT_IDS, input_ids),
            (contract.WRITE_INDICES, write_indices),
            (contract.LOGIT_INDICES, logit_indices),
        ):
            buffer, value = self._buffer(name, array.shape, np.int64)
            buffer[...] = array
            binding.bind_ortvalue_input(name, value)
        shape = (rows, logit_indices.shape[1], self.config.vocab_size)
        logits, value = self._buffer(contract.LOGITS, shape, np.float32)
        binding.bind_ortvalue_output(contract.LOGITS, value)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise MachineError(f"ONNX Runtime failed in a step: {error}") from error
        return logits

    def _start(self, step: StepInputs) -> Callable[[], StepResult]:
        return self._thread.start(self._whole, step)

    def _read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        cache = self._caches[contract.past_name(layer, kind)]
        return cache[row, :, start:stop].astype(np.float32)

    def _write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        stop = start + block.shape[1]
        self._caches[contract.past_name(layer, kind)][row, :, start:stop] = block

    def _copy(self, layer: int, kind: str, source: int, target: int, length: int) -> None:
        cache = self._caches[contract.past_name(layer, kind)]
        cache[target, :, :length] = cache[source, :, :length]

    def describe(self) -> SessionInfo:
        """See `Session.describe`."""
        return {
            "backend": "onnxruntime",
            "provider": "CPUExecutionProvider",
            "version": ort.__version__,
        }

    def _free(self) -> None:
        self._session = None
        self._bindings.clear()
        self._buffers.clear()
        self._caches.clear()

    def _binding(self, first_row: int, rows: int) -> Any:
        """The IO binding whose past and present are the same rows of the same memory."""
        key = (first_row, rows)
        if key not in self._bindings:
            binding = self._session.io_binding()
            for past, present in contract.cache_names(self.config.num_layers):
                view = self._caches[past][first_row : first_row + rows]
                value = ort.OrtValue.ortvalue_from_numpy(view)
                binding.bind_ortvalue_input(past, value)
                binding.bind_ortvalue_output(present, value)
            self._bindings[key] = binding
        return self._bindings[key]

    def _buffer(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> tuple[NDArray[Any], Any]:
        """A kept array and its OrtValue: a decode step finds its own and allocates nothing."""
        key = (name, shape)
        if key not in self._buffers:
            for stale in [k for k in self._buffers if k[0] == name and k[1][1:2] != (1,)]:
                del self._buffers[stale]  # shapes of prefills; those of decode steps stay
            array = np.zeros(shape, dtype)
            self._buffers[key] = array, ort.OrtValue.ortvalue_from_numpy(array)
        return self._buffers[key]


def _open(bundle: Path, threads: int | None, *, rounding: DType | None) -> Any:
    if threads is not None and threads < 1:
        raise RequestError(f"threads must be at least 1, got {threads}.")
    graph, weights = lower(bundle, GRAPH_FILE, rounding=rounding)
    return _session(graph, weights, bundle, threads)


def open_piece(model: onnx.ModelProto, bundle: Path, *, rounding: DType | None = None) -> Any:
    """An `onnxruntime.InferenceSession` of a piece of a bundle's graph, which is lowered.

    Args:
        rounding: see `OrtSession.open`.

    Raises:
        BundleError: a weight cannot be read, or ONNX Runtime refuses the piece.
    """
    graph, weights = lower_model(model, bundle, rounding=rounding)
    return _session(graph, weights, bundle)


def _session(graph: bytes, weights: list[Weight], bundle: Path, threads: int | None = None) -> Any:
    options = session_options(weights)
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BundleError(f"ONNX Runtime refuses the graph of {bundle}: {error}") from error


def affordable_seq_len(config: ModelConfig, max_batch: int, *, share: float) -> int:
    """Tokens a row, up to the model's context, whose fp32 cache takes `share` of this machine's
    memory at the most."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    per_token = max_batch * config.kv_bytes_per_token(DType.FP32)
    return max(1, min(config.max_position_embeddings, int(share * memory / per_token)))
