"""The `Session` on ONNX Runtime's CUDA provider: caches bound in place, decode steps as graphs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.engines.base_session import BaseSession
from nemo_trt.engines.device import CudaDevice, Device
from nemo_trt.engines.device_cache import DeviceCache
from nemo_trt.engines.session import Logits, SessionInfo, StepInputs, Tokens
from nemo_trt.engines.step_result import StepResult, WholeLogits
from nemo_trt.engines.step_thread import StepThread
from nemo_trt.errors import BundleError, MachineError
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.passes.gather_logit_rows import LOGIT_ROWS
from nemo_trt.passes.take_lengths import LENGTHS
from nemo_trt.passes.take_positions import POSITIONS
from nemo_trt.precision import DType
from nemo_trt.where import CUDA, Where

from .kernels import without_kernel
from .lowering import lower
from .provider import CudaProvider, Provider

PREFILL_TOKENS = 4096
"""Tokens of all rows together that one run computes; a longer step is cut. Bounds activations."""
_CACHE_SHARE = 0.8  # of the memory that is free once the weights lie there
_NO_GRAPH = -1


@dataclass(slots=True)
class _Run:
    """One shape of a step: its binding, the memory of its inputs and logits, and its graph."""

    binding: Any
    inputs: dict[str, int] = field(default_factory=dict)
    logits: int = 0
    graph_id: int = _NO_GRAPH


class CudaSession(BaseSession):
    """Runs a bundle on CUDA. See `Session` for the meaning of its attributes and methods.

    BF16 bundles compute in BF16. FP8 bundles round where their graph says so and multiply in BF16:
    this session is for their arithmetic, not for their speed. The cache is allocated whole, past
    and present are one memory. A decode shape (first row, rows) is captured as a CUDA graph by ONNX
    Runtime in its first run; a step of more tokens runs as it is, in pieces of `PREFILL_TOKENS`.
    Every step runs in one thread of the session's own, because ONNX Runtime keeps graphs by thread
    and waits for them.
    """

    where: Where = CUDA
    overlaps = True
    _cache: DeviceCache
    tokens_per_read = 64  # well below a data-centre GPU's BF16 operations per byte, about 200
    longer = "Open the session with a larger max_seq_len."

    def __init__(
        self,
        bundle: Bundle | Path,
        *,
        device: Device,
        provider: Provider,
        max_batch: int,
        max_seq_len: int | None,
        use_graphs: bool = True,
        base: DType | None = None,
    ) -> None:
        bundle = Bundle.open(bundle)
        self._base = base or bundle.precision.base
        fp8 = bundle.precision is DType.FP8
        super().__init__(
            bundle,
            max_batch=max_batch,
            max_seq_len=max_seq_len,
            compute_precision=DType.FP8 if fp8 else self._base,
            prefill_chunk=PREFILL_TOKENS,
        )
        self._device, self._provider, self._use_graphs = device, provider, use_graphs
        self._runs: dict[tuple[int, int, int, int], _Run] = {}
        self._num_graphs = 0
        self._thread = StepThread()
        self._session: Any = None
        try:
            self._closing.callback(device.close)
            self._session = self._open()
            self.max_seq_len = self.capacity = max_seq_len or self._affordable_seq_len()
            self._allocate()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path,
        *,
        max_batch: int = 1,
        max_seq_len: int | None = None,
        use_graphs: bool = True,
        base: DType | None = None,
    ) -> Self:
        """Open a bundle on this machine's first GPU.

        Args:
            bundle: an open bundle, or its folder.
            max_batch: rows of the cache.
            max_seq_len: tokens a row; by default the model's context, as far as memory allows.
                The cache is allocated whole.
            use_graphs: replay decode steps as CUDA graphs.
            base: FP32 computes a BF16 bundle in fp32, which takes twice the memory.

        Raises:
            BundleError: the bundle is damaged.
            MachineError: ONNX Runtime's CUDA provider or the GPU is missing, or its memory is too
                small.
        """
        provider = CudaProvider()  # first: it says what to install
        return cls(
            bundle,
            device=CudaDevice(),
            provider=provider,
            max_batch=max_batch,
            max_seq_len=max_seq_len,
            use_graphs=use_graphs,
            base=base,
        )

    def _step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        return self._thread.start(
            self._pieces, input_ids, write_indices, logit_indices, first_row
        )()

    def _start(self, step: StepInputs) -> Callable[[], StepResult]:
        return self._thread.start(self._whole_pieces, step)

    def _whole_pieces(self, step: StepInputs) -> StepResult:
        tokens = (step.input_ids, step.write_indices, step.logit_indices)
        return WholeLogits(self._pieces(*tokens, step.first_row))

    def _pieces(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        rows, new_tokens = input_ids.shape
        if new_tokens == 1:
            return self._piece(input_ids, write_indices, logit_indices, first_row)
        length = max(1, PREFILL_TOKENS // rows)
        if new_tokens <= length:
            return self._piece(input_ids, write_indices, logit_indices, first_row)
        logits = np.empty((*logit_indices.shape, self.config.vocab_size), np.float32)
        for start in range(0, new_tokens, length):
            piece = input_ids[:, start : start + length]
            here = (logit_indices >= start) & (logit_indices < start + piece.shape[1])
            wanted = np.where(here, logit_indices - start, 0)
            if not here.any():  # nothing of this piece is asked for: one position is the least
                wanted = wanted[:, :1]
            found = self._piece(piece, write_indices + start, wanted, first_row)
            if here.any():
                logits[here] = found[here]
        return logits

    def _copy(self, layer: int, kind: str, source: int, target: int, length: int) -> None:
        self._cache.copy(layer, kind, source, target, length)

    def describe(self) -> SessionInfo:
        """See `Session.describe`."""
        return {
            "backend": "onnxruntime",
            "provider": self._provider.name,
            "version": ort.__version__,
        }

    def close(self) -> None:
        """Free everything, ONNX Runtime's session first; a second call does nothing, nor does one
        in a forked process."""
        if not self._ownership.is_here:
            return
        self._thread.close()
        self._runs.clear()
        self._session = None  # its graphs hold addresses of the memory, and it uses the stream
        super().close()

    def _open(self) -> Any:
        graph = lower(self.bundle.path, GRAPH_FILE, self._base)
        if missing := without_kernel(graph.model):
            raise BundleError(
                "ONNX Runtime's CUDA provider must have a kernel for every node, got none for "
                f"{', '.join(missing)}. Export the bundle again with this version."
            )
        return self._provider.open(
            graph.model.SerializeToString(),
            graph.weights,
            self._device.stream,
            use_graphs=self._use_graphs,
        )

    def _affordable_seq_len(self) -> int:
        """Tokens a row, up to the model's context, whose cache fits beside weights and work."""
        per_token = self.max_batch * self.config.kv_bytes_per_token(self._base)
        fitting = int(_CACHE_SHARE * self._device.free_bytes() / per_token)
        if fitting < 1:
            raise MachineError(
                f"The GPU must have {per_token} bytes for a token of every row, got too few beside "
                "the weights. Take a smaller model, or fewer rows."
            )
        return min(self.config.max_position_embeddings, fitting)

    def _allocate(self) -> None:
        """Caches, and the inputs and logits of decode steps, whose addresses graphs hold."""
        per_token = self.config.kv_bytes_per_token(self._base)
        needed = self.max_batch * self.max_seq_len * per_token
        free = self._device.free_bytes()
        if needed > free:
            raise MachineError(
                f"The cache of {self.max_batch} rows of {self.max_seq_len} tokens must fit the "
                f"GPU: it takes {needed / 1e9:.1f} GB, got {free / 1e9:.1f} GB free beside the "
                "weights. Lower --max-seq-len or the rows."
            )
        self._cache = DeviceCache(
            self._device,
            self.config,
            self._base,
            max_batch=self.max_batch,
            capacity=self.max_seq_len,
        )
        self._closing.callback(self._cache.close)
        self._decode_logits = np.empty((self.max_batch, 1, self.config.vocab_size), np.float32)
        self._device.pin(self._decode_logits)
        self._prefill_memory: dict[str, tuple[int, int]] = {}  # name -> address, bytes
        self._closing.callback(self._free_prefill_memory)

    def _logit_bytes(self, positions: int) -> int:
        return positions * self.config.vocab_size * DType.FP32.itemsize

    def _piece(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        rows, new_tokens = input_ids.shape
        num_logits = logit_indices.shape[1]
        run = self._run(first_row, rows, new_tokens, num_logits)
        for name, values in (
            (contract.INPUT_IDS, input_ids),
            (contract.WRITE_INDICES, write_indices),
            (POSITIONS, write_indices[:, None] + np.arange(new_tokens)),
            (LENGTHS, write_indices + new_tokens),
            (LOGIT_ROWS, np.arange(rows)[:, None] * new_tokens + logit_indices),
        ):
            self._device.upload(run.inputs[name], np.ascontiguousarray(values, np.int64))
        try:
            self._session.run_with_iobinding(run.binding, self._run_options(run.graph_id))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise MachineError(f"ONNX Runtime failed in a step on CUDA: {error}") from error
        logits = self._decode_logits[:rows]
        if not new_tokens == num_logits == 1:
            logits = np.empty((rows, num_logits, self.config.vocab_size), np.float32)
        self._device.download(logits, run.logits)
        return logits

    def _run_options(self, graph_id: int) -> Any:
        options = ort.RunOptions()
        if self._use_graphs:
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
        return options

    def _run(self, first_row: int, rows: int, new_tokens: int, num_logits: int) -> _Run:
        """The run of a shape. Those of decode steps are kept with memory of their own; of others
        the last one is, in memory that grows."""
        key = first_row, rows, new_tokens, num_logits
        if key in self._runs:
            return self._runs[key]
        decode = new_tokens == num_logits == 1
        if not decode:
            self._runs = {k: run for k, run in self._runs.items() if k[2:] == (1, 1)}
        run = _Run(self._session.io_binding())
        shapes = {
            contract.INPUT_IDS: (rows, new_tokens),
            contract.WRITE_INDICES: (rows,),
            POSITIONS: (rows, new_tokens),
            LENGTHS: (rows,),
            LOGIT_ROWS: (rows, num_logits),
        }
        for name, shape in shapes.items():
            num_bytes = int(np.prod(shape)) * DType.INT64.itemsize
            run.inputs[name] = self._memory(name, num_bytes, decode)
            self._bind(run.binding.bind_input, name, np.int64, shape, run.inputs[name])
        logits_shape = rows, num_logits, self.config.vocab_size
        run.logits = self._memory(contract.LOGITS, self._logit_bytes(rows * num_logits), decode)
        self._bind(run.binding.bind_output, contract.LOGITS, np.float32, logits_shape, run.logits)
        cache_shape = rows, self.config.num_kv_heads, self.max_seq_len, self.config.head_dim
        for past, present in contract.cache_names(self.config.num_layers):
            address = self._cache.address(past, first_row)
            for bind, name in ((run.binding.bind_input, past), (run.binding.bind_output, present)):
                self._bind(bind, name, self._base.onnx_code, cache_shape, address)
        if decode and self._use_graphs:
            self._num_graphs += 1
            run.graph_id = self._num_graphs
        self._runs[key] = run
        return run

    def _bind(
        self, bind: Any, name: str, dtype: object, shape: tuple[int, ...], address: int
    ) -> None:
        bind(name, self._provider.memory, 0, dtype, list(shape), address)

    def _memory(self, name: str, num_bytes: int, decode: bool) -> int:
        if decode:
            address = self._device.allocate(num_bytes)
            self._closing.callback(self._device.free, address)
            return address
        address, held = self._prefill_memory.get(name, (0, 0))
        if held < num_bytes:
            if held:
                del self._prefill_memory[name]
                self._device.free(address)
            address = self._device.allocate(num_bytes)
            self._prefill_memory[name] = address, num_bytes
        return address

    def _free_prefill_memory(self) -> None:
        for address, _ in self._prefill_memory.values():
            self._device.free(address)
        self._prefill_memory.clear()
