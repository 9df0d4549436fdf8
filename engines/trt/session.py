"""The `Session` on a TensorRT engine: caches bound in place, decode replayed as CUDA graphs."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.engines.base_session import BaseSession
from nemo_trt.engines.device import CudaDevice, Device
from nemo_trt.engines.session import Logits, SessionInfo, Tokens
from nemo_trt.errors import BuildError, MachineError
from nemo_trt.where import Where

from .attention.cache import PagedCache
from .attention.place import LENGTHS
from .network import step_inputs
from .record import EngineRecord, read_record
from .row_cache import RowCache
from .runtime import Context, Plan, TensorRtPlan
from .toolkit import load_toolkit

_LOG = logging.getLogger("nemo_trt.engines")
OpenPlan = Callable[[Path], Plan]
_CAPTURE_AFTER = 1  # runs of a decode shape before it is captured: TensorRT allocates in the first


class TensorRtSession(BaseSession):
    """Runs an engine. See `Session` for the meaning of its attributes and methods.

    One stream, one context for prefill and one for each decode shape (first row, rows), all in one
    scratch memory. A decode shape runs once as it is; its second run is captured, and all later
    ones are launches of that graph. A step of more than one token a row goes through the rows one
    by one, in chunks.

    Device memory is allocated at open and nowhere else.
    """

    tokens_per_read = 64  # well below a data-centre GPU's BF16 operations per byte, about 200
    _cache: RowCache | PagedCache
    longer = "Build the engine with a larger --max-seq-len."

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
        self._graphs: dict[tuple[int, int], object | None] = {}  # None: it was refused
        self._without_graph = ""  # why, of the latest
        self._decoders: dict[tuple[int, int], tuple[Context, list[int]]] = {}
        try:
            self._closing.callback(device.close)
            if device.sm != options.sm:
                raise MachineError(
                    f"Engine {record.name} is for sm_{options.sm}, got a GPU of sm_{device.sm}. "
                    f"Build one for it: nemo-trt build {self.bundle} --gpu NAME."
                )
            self._allocate(open_plan, self.bundle.engine_folder(record.name))
            self._closing.callback(self._forget)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, bundle: Bundle | Path, name: str, *, use_graphs: bool = True) -> Self:
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
        return cls(
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
        return {**found, "without_graph": self._without_graph} if self._without_graph else found

    def _forget(self) -> None:
        self._graphs.clear()
        self._decoders.clear()

    def _allocate(self, open_plan: OpenPlan, folder: Path) -> None:
        """Load the plans, and allocate caches, inputs, outputs and scratch."""
        self._plans: dict[str, tuple[Plan, int]] = {}
        for file in self.record.plans:
            plan = open_plan(folder / file.file)
            self._closing.callback(plan.close)
            for index, profile in enumerate(file.profiles):
                self._plans[profile] = plan, index
        options, config = self.record.options, self.config
        kind = PagedCache if options.attention == "paged" else RowCache
        self._cache = kind(self._device, config, self._dtype, options)
        self._closing.callback(self._cache.close)
        positions = max(options.max_logits, self.max_batch)
        self._inputs = {
            contract.INPUT_IDS: self._memory(8 * max(options.prefill_chunk, self.max_batch)),
            contract.WRITE_INDICES: self._memory(8 * self.max_batch),
            contract.LOGIT_INDICES: self._memory(8 * positions),
            LENGTHS: self._memory(4 * self.max_batch),
        }
        self._logits = self._memory(4 * positions * config.vocab_size)
        self._logits_host = np.empty((self.max_batch, 1, config.vocab_size), np.float32)
        self._scratch_bytes = max(plan.scratch_bytes for plan, _ in self._plans.values())
        self._scratch = self._memory(max(self._scratch_bytes, 1))
        self._prefiller = self._context("prefill")
        self._prefill_row = -1
        self._prefill_shapes: dict[str, tuple[int, ...]] = {}

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
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, new_tokens: int
    ) -> None:
        for name, values in (
            (contract.INPUT_IDS, input_ids),
            (contract.WRITE_INDICES, write_indices),
            (contract.LOGIT_INDICES, logit_indices),
        ):
            self._device.upload(self._inputs[name], np.ascontiguousarray(values, np.int64))
        lengths = np.ascontiguousarray(write_indices + new_tokens, np.int32)
        self._device.upload(self._inputs[LENGTHS], lengths)

    def _decode(self, input_ids: Tokens, write_indices: Tokens, first_row: int) -> Logits:
        """One token for each of some rows, as a graph from the second time on."""
        rows = len(input_ids)
        key = (first_row, rows)
        if key not in self._decoders:
            context = self._context("decode")
            for name, shape in step_inputs(rows, 1, 1).items():
                context.set_shape(name, shape)
            self._cache.bind(context, first_row, rows)
            self._decoders[key] = context, [0]
        context, runs = self._decoders[key]
        self._upload(input_ids, write_indices, np.zeros((rows, 1), np.int64), 1)
        if key not in self._graphs and self._use_graphs and runs[0] >= _CAPTURE_AFTER:
            self._graphs[key] = self._capture(context, rows)
        if graph := self._graphs.get(key):
            self._device.launch(graph)
        else:
            context.enqueue(self._device.stream)
            runs[0] += 1
        logits = self._logits_host[:rows]
        self._device.download(logits, self._logits)
        return logits

    def _capture(self, context: Context, rows: int) -> object | None:
        """A decode step as a graph; None, which the log and `describe` report, if it is refused."""
        try:
            graph = self._captured(context)
        except MachineError as error:
            self._without_graph = f"{rows} rows: {error}"
            _LOG.warning(
                "decode steps of %d rows run without a CUDA graph, slower: %s", rows, error
            )
            return None
        self._closing.callback(self._device.free_graph, graph)
        return graph

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
            self._cache.bind(self._prefiller, row, 1 if self._prefill_row < 0 else None)
            self._prefill_row = row
        for first in range(0, len(tokens), chunk):
            piece = tokens[first : first + chunk]
            here = np.flatnonzero((wanted >= first) & (wanted < first + len(piece)))
            for some in np.split(here, range(options.max_logits, len(here), options.max_logits)):
                # Repeated for a position that is wanted more often than logits fit: same result.
                indices = wanted[some] - first if len(some) else np.zeros(1, np.int64)
                self._run_prefill(piece, start + first, indices)
                if len(some):
                    found = np.empty((len(some), self.config.vocab_size), np.float32)
                    self._device.download(found, self._logits)
                    logits[some] = found

    def _run_prefill(self, piece: Tokens, start: int, indices: Tokens) -> None:
        shapes = step_inputs(1, len(piece), len(indices))
        for name, shape in shapes.items():
            if self._prefill_shapes.get(name) != shape:
                self._prefiller.set_shape(name, shape)
        self._prefill_shapes = shapes
        self._upload(piece[None], np.array([start]), indices[None], len(piece))
        self._prefiller.enqueue(self._device.stream)
