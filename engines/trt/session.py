"""The `Session` on a TensorRT engine: caches bound in place, decode replayed as CUDA graphs."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_trt.bundle import Bundle
from nemo_trt.engines.base_session import BaseSession
from nemo_trt.engines.candidates import COLDEST
from nemo_trt.engines.device import CudaDevice, Device
from nemo_trt.engines.session import CacheBlock, Logits, PageView, SessionInfo, StepInputs, Tokens
from nemo_trt.engines.step_result import StepResult
from nemo_trt.errors import BuildError, MachineError
from nemo_trt.where import Where

from .decoders import Decoders
from .device_weights import DeviceWeights, weight_bytes
from .engine_record import EngineRecord, read_record
from .inputs import Inputs, input_bytes
from .memory import DeviceMemory, device_memory, require_free
from .outputs import DeviceResult, Outputs, Run
from .profiles import PREFILL, Shapes, decode_name, step_inputs
from .row_cache import RowCache
from .runtime import Context, Plan, TensorRtPlan
from .stripped import weights_to_take
from .toolkit import load_toolkit
from .windows import Window, Windows

OpenPlan = Callable[[Path], Plan]


class TensorRtSession(BaseSession):
    """Runs an engine. See `Session` for the meaning of its attributes and methods.

    One stream, one context for prefill and one for each decode window (`windows.py`), all in one
    scratch memory. Each window is captured as a CUDA graph when the session opens, after a run as
    it is, because TensorRT allocates in the first. A step of more than one token a row goes through
    the rows one by one, in chunks. `launch` puts a step on the stream, and `collect` waits for the
    copy of its candidates; whole logits are copied on demand.

    Device memory is allocated at open and nowhere else; `memory` is its sum.
    """

    overlaps = True
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
        self._device = device
        self._decoders = Decoders(device, use_graphs=use_graphs)
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
            self._closing.callback(self._decoders.close)
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
        return self._all_logits(input_ids, write_indices, logit_indices, first_row, None)

    def _all_logits(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int,
        pages: PageView | None,
    ) -> Logits:
        """Run a step, and copy the logits of all its positions."""
        cold = np.full(len(input_ids), COLDEST, np.float32)
        if input_ids.shape[1] == logit_indices.shape[1] == 1:
            logits = self._logits_host[: len(input_ids)]
            for run in self._decode(input_ids, write_indices, cold, first_row, pages):
                address = self._outputs.logits_address(run.bound, run.offset)
                self._device.download(logits[run.asked], address)
            return logits
        logits = np.zeros((*logit_indices.shape, self.config.vocab_size), np.float32)
        rows = self._rows(input_ids, write_indices, first_row, pages)
        for found, wanted, (tokens, start, row) in zip(logits, logit_indices, rows, strict=True):
            for some in self._prefill(tokens, start, wanted, row, cold[:1]):
                positions = self._positions_host[: len(some)]
                self._device.download(positions, self._outputs.logits_address(0, 0))
                found[some] = positions
        return logits

    def _start(self, step: StepInputs) -> Callable[[], StepResult]:
        """Put a step on the stream. One that nobody samples from, or whose logits do not fit the
        device at once, runs to its end here."""
        input_ids, write_indices, logit_indices = (
            step.input_ids, step.write_indices, step.logit_indices,
        )  # fmt: skip
        rows, count = logit_indices.shape
        fits = rows * count <= self._outputs.positions
        if step.temperatures is None or not fits or (np.diff(logit_indices, axis=1) < 0).any():
            return super()._start(step)
        degrees = np.maximum(step.temperatures, np.float32(COLDEST))
        outputs, addresses = self._outputs, [0] * (rows * count)
        if input_ids.shape[1] == count == 1:
            for run in self._decode(input_ids, write_indices, degrees, step.first_row, step.pages):
                first, stop = run.asked.start, run.asked.stop
                outputs.start_download(run.bound, run.offset, run.offset + stop - first, first)
                addresses[run.asked] = [
                    outputs.logits_address(run.bound, run.offset + at) for at in range(stop - first)
                ]
        else:
            each = self._rows(input_ids, write_indices, step.first_row, step.pages)
            for index, (tokens, start, row) in enumerate(each):
                wanted, degree = logit_indices[index], degrees[[index]]
                for some in self._prefill(tokens, start, wanted, row, degree, index * count):
                    bound = index * count + int(some[0])
                    outputs.start_download(bound, 0, len(some), bound)
                    for at in range(len(some)):
                        addresses[bound + at] = outputs.logits_address(bound, at)
        self._device.record()

        def wait() -> StepResult:
            self._device.wait()
            return DeviceResult(self._device, outputs, count, addresses)

        return wait

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
        if without := self._decoders.without_graph:
            found["without_graph"] = "; ".join(
                f"{rows} rows: {why}" for rows, why in without.items()
            )
        return found

    def _write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        super()._write(layer, kind, row, start, block)
        self._ends[row] = max(self._ends[row], start + block.shape[1])

    def _allocate(self, open_plan: OpenPlan, folder: Path) -> None:
        """Load the plans, and allocate caches, inputs, outputs and scratch."""
        options, config = self.record.options, self.config
        positions = max(options.max_logits, self.max_batch)
        sizes, weights = input_bytes(options), weights_to_take(self.bundle, self.record)
        self._windows = Windows(
            self.max_batch,
            weight_bytes=self.record.weight_bytes,
            row_bytes=self.max_seq_len * self.record.kv_bytes_per_token(config),
        )
        self.memory: DeviceMemory = device_memory(
            self.record,
            config,
            io_bytes=sum(sizes.values()) + Outputs.num_bytes(positions, config.vocab_size),
            num_windows=len(list(self._decode_windows())),
            weight_bytes=weight_bytes(weights),
        )
        require_free(self.memory, self._device.free_bytes(), self.record.name)
        self._plans: dict[str, tuple[Plan, int]] = {}
        for file in self.record.plans:
            plan = open_plan(folder / file.file)
            self._closing.callback(plan.close)
            for index, profile in enumerate(file.profiles):
                self._plans[profile] = plan, index
        self._weights = DeviceWeights(self._device, weights)
        self._closing.callback(self._weights.close)
        self._inputs = Inputs(self._device, sizes)
        self._closing.callback(self._inputs.close)
        self._outputs = Outputs(self._device, positions, config.vocab_size)
        self._closing.callback(self._outputs.close)
        self._logits_host = np.empty((self.max_batch, 1, config.vocab_size), np.float32)
        self._positions_host = np.empty((options.max_logits, config.vocab_size), np.float32)
        for array in (self._logits_host, self._positions_host):
            self._device.pin(array)
        self._scratch_bytes = max(plan.scratch_bytes for plan, _ in self._plans.values())
        self._scratch = self._memory(max(self._scratch_bytes, 1))
        self._open_cache()
        self._closing.callback(self._cache.close)
        self._prefiller = self._context(PREFILL)
        self._prefill_row, self._prefill_bound = -1, 0
        self._prefill_shapes: Shapes = {}

    def _open_cache(self) -> None:
        """Allocate the cache, after everything else."""
        self._cache = RowCache(self._device, self.config, self.record)

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
        self._weights.bind(context)
        self._inputs.bind(context)
        self._outputs.bind(context, 0)
        return context

    def _open_decoders(self) -> None:
        """Make a context for each window, run it once, and capture it."""
        for window in self._decode_windows():
            context = self._context(decode_name(window.rows))
            for name, shape in step_inputs(window.rows, 1, 1).items():
                context.set_shape(name, shape)
            self._bind(context, window)
            self._outputs.bind(context, window.first)
            nothing, ones = np.zeros((window.rows, 1), np.int64), np.ones(window.rows, np.float32)
            lengths = np.full(window.rows, self._first_length)
            prepare = partial(self._inputs.upload, nothing, nothing[:, 0], nothing, lengths, ones)
            self._decoders.add(window, context, prepare)

    def _decode(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        temperatures: Logits,
        first_row: int,
        pages: PageView | None,
    ) -> Iterator[Run]:
        """Run one token of each of some rows; give each run once it is on the stream."""
        stop = first_row + len(input_ids)
        self._ends[first_row:stop] = write_indices + 1
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
            degrees = np.ones(window.rows, np.float32)
            degrees[of_window] = temperatures[asked]
            self._inputs.upload(
                tokens, starts, np.zeros((window.rows, 1), np.int64), starts + 1, degrees
            )
            self._decoders.run(window)
            yield Run(window.first, of_window.start, asked)

    def _rows(
        self, input_ids: Tokens, write_indices: Tokens, first_row: int, pages: PageView | None
    ) -> Iterator[tuple[Tokens, int, int]]:
        """The tokens of each row of a prefill step, what it holds, and its cache row."""
        for row, start in enumerate(write_indices.tolist()):
            self._ends[first_row + row] = start + input_ids.shape[1]
            yield input_ids[row], start, first_row + row

    def _prefill(
        self,
        tokens: Tokens,
        start: int,
        wanted: Tokens,
        row: int,
        temperature: Logits,
        bound: int | None = None,
    ) -> Iterator[NDArray[np.int64]]:
        """Run tokens of one row in chunks; give the indices of the `wanted` positions that a run
        has the outputs of, once it is on the stream.

        Args:
            bound: where the output of the first wanted one goes; by default each run's go to 0.
        """
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
                before = int(some[0]) if len(some) else 0  # without any, the next overwrites it
                target = 0 if bound is None else bound + before
                self._run_prefill(piece, start + first, indices, temperature, target)
                if len(some):
                    yield some

    def _run_prefill(
        self, piece: Tokens, start: int, indices: Tokens, temperature: Logits, bound: int
    ) -> None:
        shapes = step_inputs(1, len(piece), len(indices))
        for name, shape in shapes.items():
            if self._prefill_shapes.get(name) != shape:
                self._prefiller.set_shape(name, shape)
        self._prefill_shapes = shapes
        if bound != self._prefill_bound:
            self._outputs.bind(self._prefiller, bound)
            self._prefill_bound = bound
        starts = np.array([start])
        self._inputs.upload(piece[None], starts, indices[None], starts + len(piece), temperature)
        self._prefiller.enqueue(self._device.stream)
