"""The `Session` on a TensorRT engine: caches bound in place, decode replayed as CUDA graphs."""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.engines.base_session import BaseSession
from nemo_trt.engines.device import CudaDevice, Device
from nemo_trt.engines.session import CacheBlock, Logits, SessionInfo, Tokens
from nemo_trt.errors import BuildError, MachineError
from nemo_trt.where import Where

from .attention.place import LENGTHS
from .memory import device_memory, require_free
from .profiles import PREFILL, Shapes, decode_name, step_inputs
from .record import EngineRecord, read_record
from .row_cache import RowCache
from .runtime import Context, Plan, TensorRtPlan
from .toolkit import load_toolkit
from .windows import Window, Windows

_LOG = logging.getLogger("nemo_trt.engines")
OpenPlan = Callable[[Path], Plan]


class TensorRtSession(BaseSession):
    """Runs an engine. See `Session` for the meaning of its attributes and methods.

    One stream, one context for prefill and one for each decode window (`windows.py`), all in one
    scratch memory. Each window is captured as a CUDA graph when the session opens, after a run as
    it is, because TensorRT allocates in the first. A step of more than one token a row goes through
    the rows one by one, in chunks.

    Device memory is allocated at open and nowhere else.
    """

    tokens_per_read = 64  # well below a data-centre GPU's BF16 operations per byte, about 200
    _cache: RowCache
    longer = "Build the engine with a larger --max-seq-len."
    _first_length = 1  # of rows in the run before a capture, which writes where nothing is held

    def __init__(
        self,
        bundle: Bundle | Path,
        record: EngineRecord,
        *,
        device: Device,
        open_plan: OpenPlan,
        use_graphs: bool = True,
    ) -> None:
        options, bundle = record.options, Bundle.open(bundle)
        super().__init__(
            bundle,
            max_batch=options.max_batch,
            max_seq_len=options.max_seq_len,
            compute_precision=bundle.precision,
            prefill_chunk=options.prefill_chunk,
        )
        self.record, self.where = record, Where("engine", record.name)
        self.capacity = options.max_seq_len
        self._dtype = bundle.precision.base
        self._device, self._use_graphs = device, use_graphs
        self._graphs: dict[Window, object] = {}
        self._without_graph: dict[int, str] = {}  # rows -> why
        self._decoders: dict[Window, Context] = {}
        self._ends = np.zeros(self.max_batch, np.int64)
        """Tokens that each row may hold: none lies at this position, or behind it."""
        try:
            self._closing.callback(device.close)
            if device.sm != options.sm:
                raise MachineError(
                    f"Engine {record.name} is for sm_{options.sm}, got a GPU of sm_{device.sm}. "
                    f"Build one for it: nemo-trt build {self.bundle} --gpu NAME."
                )
            self._allocate(open_plan, self.bundle.engine_folder(record.name))
            self._closing.callback(self._forget)
            self._open_decoders()
            for plan in {id(plan): plan for plan, _ in self._plans.values()}.values():
                plan.keep_compiled()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls, bundle: Bundle | Path, name: str, *, use_graphs: bool = True
    ) -> "TensorRtSession":
        """Open an engine of a bundle on this machine's GPU.

        Args:
            bundle: an open bundle, or its folder.
            name: of a folder in `bundle/engines`.
            use_graphs: replay decode steps as CUDA graphs.

        Raises:
            BuildError: there is no such engine, it is of another bundle, or of another version of
                TensorRT than the one installed; the command that rebuilds it is said.
            MachineError: TensorRT, CUDA or the right GPU is missing.
        """
        bundle = Bundle.open(bundle)
        record = read_record(bundle, name, verify=False)  # each plan is verified as it loads
        toolkit = load_toolkit(record.toolkit)  # type: ignore[arg-type]  # the builder wrote it
        if toolkit.version != record.toolkit_version:
            raise BuildError(
                f"Engine {name} is of {record.toolkit} {record.toolkit_version}, got "
                f"{toolkit.version}. Build it again: {record.rebuild_command(bundle)}."
            )
        try:
            device = CudaDevice()
        except MachineError as error:
            options = record.options
            raise MachineError(
                f"Engine {name} runs on an sm_{options.sm} GPU like {options.target}, and none "
                f"answers here: {error}"
            ) from error
        digests = {plan.file: plan.digest for plan in record.plans}
        kind: type[TensorRtSession] = cls
        if record.paged:
            from .paged_session import PagedTensorRtSession as kind
        return kind(
            bundle,
            record,
            device=device,
            open_plan=lambda path: TensorRtPlan(toolkit, path, digests[path.name], record.paged),
            use_graphs=use_graphs,
        )

    def _step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        rows, new_tokens = input_ids.shape
        self._ends[first_row : first_row + rows] = write_indices + new_tokens
        if new_tokens == 1 and logit_indices.shape[1] == 1:
            return self._decode(input_ids, write_indices, first_row)
        logits = np.empty((*logit_indices.shape, self.config.vocab_size), np.float32)
        for row in range(rows):
            self._prefill(
                input_ids[row], int(write_indices[row]), logit_indices[row], first_row + row,
                logits[row],
            )  # fmt: skip
        return logits

    def step_cost(self, rows: int, new_tokens: int) -> float:
        """Rows of more than one token run one by one. See `Session.step_cost`."""
        if new_tokens == 1:
            return super().step_cost(rows, 1)
        return rows * super().step_cost(1, new_tokens)

    def describe(self) -> SessionInfo:
        """See `Session.describe`."""
        found: SessionInfo = {
            "backend": self.record.toolkit,
            "version": self.record.toolkit_version,
            "engine": self.record.name,
            "engine_id": self.record.engine_id,
            "target": self.record.options.target,
        }
        if self._without_graph:
            reasons = [f"{rows} rows: {why}" for rows, why in self._without_graph.items()]
            found["without_graph"] = "; ".join(reasons)
        return found

    def _write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        super()._write(layer, kind, row, start, block)
        self._ends[row] = max(self._ends[row], start + block.shape[1])

    def _forget(self) -> None:
        self._graphs.clear()
        self._decoders.clear()

    def _allocate(self, open_plan: OpenPlan, folder: Path) -> None:
        """Load the plans, and allocate caches, inputs, outputs and scratch."""
        options, config = self.record.options, self.config
        positions = max(options.max_logits, self.max_batch)
        sizes = {
            contract.INPUT_IDS: 8 * max(options.prefill_chunk, self.max_batch),
            contract.WRITE_INDICES: 8 * self.max_batch,
            contract.LOGIT_INDICES: 8 * positions,
            LENGTHS: 4 * self.max_batch,
        }
        logits_bytes = 4 * positions * config.vocab_size
        self._windows = Windows(
            self.max_batch,
            weight_bytes=self.record.weight_bytes,
            row_bytes=self.max_seq_len * config.kv_bytes_per_token(self._dtype),
        )
        needed = device_memory(
            self.record,
            config,
            self._dtype,
            io_bytes=sum(sizes.values()) + logits_bytes,
            num_windows=len(list(self._decode_windows())),
        )
        require_free(needed, self._device.free_bytes(), self.record.name)
        self._plans: dict[str, tuple[Plan, int]] = {}
        for file in self.record.plans:
            plan = open_plan(folder / file.file)
            self._closing.callback(plan.close)
            for index, profile in enumerate(file.profiles):
                self._plans[profile] = plan, index
        self._inputs = {name: self._memory(num_bytes) for name, num_bytes in sizes.items()}
        self._logits = self._memory(logits_bytes)
        # Logits are pinned: they are much of what is copied. Inputs are not: a copy of pinned
        # memory may still run when the next chunk overwrites it.
        self._logits_host = np.empty((self.max_batch, 1, config.vocab_size), np.float32)
        self._positions_host = np.empty((options.max_logits, config.vocab_size), np.float32)
        for array in (self._logits_host, self._positions_host):
            self._device.pin(array)
        self._scratch_bytes = max(plan.scratch_bytes for plan, _ in self._plans.values())
        self._scratch = self._memory(max(self._scratch_bytes, 1))
        self._open_cache()
        self._closing.callback(self._cache.close)
        self._prefiller = self._context(PREFILL)
        self._prefill_row = -1
        self._prefill_shapes: Shapes = {}

    def _open_cache(self) -> None:
        """Allocate the cache, after everything else."""
        self._cache = RowCache(self._device, self.config, self._dtype, self.record.options)

    def _decode_windows(self) -> Iterable[Window]:
        """The decode steps that are captured at open."""
        return self._windows

    def _bind(self, context: Context, window: Window) -> None:
        """Bind the cache to a decode context."""
        self._cache.bind(context, window.first, window.rows)

    def _bind_prefill(self, row: int) -> None:
        """Bind the cache to the prefill context, which worked on another row or on none."""
        self._cache.bind(self._prefiller, row, 1 if self._prefill_row < 0 else None)

    def _memory(self, num_bytes: int) -> int:
        address = self._device.allocate(num_bytes)
        self._closing.callback(self._device.free, address)
        return address

    def _context(self, profile: str) -> Context:
        """A new context of a profile, all but its caches bound."""
        plan, index = self._plans[profile]
        context = plan.context(index, self._device.stream, self._scratch, self._scratch_bytes)
        self._closing.callback(context.close)
        for name, address in self._inputs.items():
            context.set_address(name, address)
        context.set_address(contract.LOGITS, self._logits)
        return context

    def _upload(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        lengths: NDArray[np.integer[Any]],
    ) -> None:
        for name, values in (
            (contract.INPUT_IDS, input_ids),
            (contract.WRITE_INDICES, write_indices),
            (contract.LOGIT_INDICES, logit_indices),
        ):
            self._device.upload(self._inputs[name], np.ascontiguousarray(values, np.int64))
        self._device.upload(self._inputs[LENGTHS], np.ascontiguousarray(lengths, np.int32))

    def _open_decoders(self) -> None:
        """Make a context for each window, run it once, and capture it."""
        for window in self._decode_windows():
            context = self._context(decode_name(window.rows))
            for name, shape in step_inputs(window.rows, 1, 1).items():
                context.set_shape(name, shape)
            self._bind(context, window)
            self._decoders[window] = context
            if self._use_graphs and window.rows not in self._without_graph:
                nothing = np.zeros((window.rows, 1), np.int64)
                lengths = np.full(window.rows, self._first_length)
                self._upload(nothing, nothing[:, 0], nothing, lengths)
                context.enqueue(self._device.stream)
                self._capture(context, window)

    def _decode(self, input_ids: Tokens, write_indices: Tokens, first_row: int) -> Logits:
        """One token for each of some rows."""
        stop = first_row + len(input_ids)
        logits = self._logits_host[: len(input_ids)]
        full = frozenset(np.flatnonzero(self._ends >= self.max_seq_len).tolist())
        for window in self._windows.cover(first_row, stop, full):
            # Rows of the window that were not asked for write behind what they hold.
            first, last = max(first_row, window.first), min(stop, window.stop)
            of_window = slice(first - window.first, last - window.first)
            asked = slice(first - first_row, last - first_row)
            tokens = np.zeros((window.rows, 1), np.int64)
            tokens[of_window] = input_ids[asked]
            starts = self._ends[window.first : window.stop].copy()
            starts[of_window] = write_indices[asked]
            self._upload(tokens, starts, np.zeros((window.rows, 1), np.int64), starts + 1)
            self._run(window)
            offset = of_window.start * logits[0].nbytes
            self._device.download(logits[asked], self._logits + offset)
        return logits

    def _run(self, window: Window) -> None:
        """Put a decode step of what was uploaded on the stream."""
        if graph := self._graphs.get(window):
            self._device.launch(graph)
        else:
            self._decoders[window].enqueue(self._device.stream)

    def _capture(self, context: Context, window: Window) -> None:
        """Keep a window's decode step as a graph; if it is refused, log and `describe` say so."""
        try:
            graph = self._captured(context)
        except MachineError as error:
            self._without_graph[window.rows] = str(error)
            _LOG.warning(
                "decode steps of %d rows run without a CUDA graph, slower: %s", window.rows, error
            )
            return
        self._closing.callback(self._device.free_graph, graph)
        self._graphs[window] = graph

    def _captured(self, context: Context) -> object:
        if not context.capturable(self._device.stream):
            raise MachineError("TensorRT says that it cannot be captured.")
        self._device.begin_capture()
        try:
            context.enqueue(self._device.stream)
        except BaseException:
            with suppress(MachineError):  # CUDA refuses the capture's end too: the reason stays
                self._device.free_graph(self._device.end_capture())
            raise
        return self._device.end_capture()

    def _prefill(
        self, tokens: Tokens, start: int, wanted: Tokens, row: int, logits: Logits
    ) -> None:
        """Tokens of one row in chunks; fill (N, V) `logits` of the `wanted` positions."""
        options = self.record.options
        chunk = options.prefill_chunk
        if len(wanted) > options.max_logits:
            chunk = min(chunk, options.max_logits)
        if row != self._prefill_row:
            self._bind_prefill(row)
            self._prefill_row = row
        for first in range(0, len(tokens), chunk):
            piece = tokens[first : first + chunk]
            here = np.flatnonzero((wanted >= first) & (wanted < first + len(piece)))
            for some in np.split(here, range(options.max_logits, len(here), options.max_logits)):
                # Repeated for a position that is wanted more often than logits fit: same result.
                indices = wanted[some] - first if len(some) else np.zeros(1, np.int64)
                self._run_prefill(piece, start + first, indices)
                if len(some):
                    found = self._positions_host[: len(some)]
                    self._device.download(found, self._logits)
                    logits[some] = found

    def _run_prefill(self, piece: Tokens, start: int, indices: Tokens) -> None:
        shapes = step_inputs(1, len(piece), len(indices))
        for name, shape in shapes.items():
            if self._prefill_shapes.get(name) != shape:
                self._prefiller.set_shape(name, shape)
        self._prefill_shapes = shapes
        starts = np.array([start])
        self._upload(piece[None], starts, indices[None], starts + len(piece))
        self._prefiller.enqueue(self._device.stream)
