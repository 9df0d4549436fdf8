"""What every session shares: its sizes and bounds, the checks before a step, open and closed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol, Self

from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.errors import CapacityError, MachineError, NemoTrtError, RequestError, StateError
from nemo_trt.where import Where

from .ownership import Ownership
from .session import CacheBlock, Logits, PageView, StepInputs, Tokens
from .step_result import StepResult, WholeLogits


class Cache(Protocol):
    """Where a session's keys and values lie, in blocks as `Session.read_cache` has them."""

    def read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        """Copy a block out of it."""

    def write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        """Overwrite a block of it."""


class BaseSession:
    """The part of a `Session` that does not depend on what computes.

    A subclass sets `where`, allocates in its constructor, puts on `_closing` what frees it, and
    sets `_cache` or defines `_read` and `_write`, and defines `_step`; they are called with
    arguments that have been checked. One whose cache grows defines `_grow`, one that `overlaps`
    defines `_start`.

    Args:
        bundle: what it runs.
        max_batch: rows.
        max_seq_len: tokens a row at most; by default the model's context length.
        compute_precision, prefill_chunk: see `Session`.
    """

    where: Where
    overlaps = False
    page_tokens: int | None = None
    num_pages = 0
    tokens_per_read: int
    """Tokens that are computed in the time of reading the weights once."""
    _cache: Cache
    longer: str
    """How a longer row is had, for an error."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_batch: int,
        max_seq_len: int | None,
        compute_precision: str,
        prefill_chunk: int | None = None,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("max_seq_len", max_seq_len)):
            if value is not None and value < 1:
                raise RequestError(f"{name} must be at least 1, got {value}.")
        self.bundle = bundle
        self.config: ModelConfig = bundle.config
        self.max_batch = max_batch
        self.max_seq_len = max_seq_len or self.config.max_position_embeddings
        self.capacity = 0
        self.compute_precision: str = compute_precision
        self.prefill_chunk: int | None = prefill_chunk
        self._ownership = Ownership("a session")
        self._closing = ExitStack()
        self._closed = False
        self._wait: Callable[[], StepResult] | None = None
        """Waits for the step that was launched."""

    def bind(self, capacity: int) -> None:
        """Make the cache hold at least `capacity` tokens a row. See `Session.bind`."""
        self._require_open()
        if capacity > self.max_seq_len:
            raise CapacityError(
                f"The cache must hold at most {self.max_seq_len} tokens a row, got {capacity}. "
                f"{self.longer}"
            )
        if capacity > self.capacity:
            with self._ownership:
                try:
                    self._grow(capacity)
                except MemoryError as error:
                    raise CapacityError(
                        f"The cache must grow to {capacity} tokens a row, for which this machine "
                        "has no memory. Ask for less, or open fewer rows."
                    ) from error

    def step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int = 0
    ) -> Logits:
        """Run B rows from `first_row` on. See `Session.step`."""
        self._require_open()
        self._require_rows(input_ids, write_indices, first_row)
        with self._ownership, _memory_errors():
            return self._step(input_ids, write_indices, logit_indices, first_row)

    def launch(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int = 0,
        temperatures: Logits | None = None,
        pages: PageView | None = None,
    ) -> None:
        """Start a step. See `Session.launch`."""
        self._require_open()
        if pages is None:
            self._require_rows(input_ids, write_indices, first_row)
        else:
            self._require_pages(input_ids, write_indices, pages)
        with self._ownership, _memory_errors():
            self._wait = self._start(
                StepInputs(input_ids, write_indices, logit_indices, first_row, temperatures, pages)
            )

    def collect(self) -> StepResult:
        """See `Session.collect`.

        Raises:
            StateError: no step was launched.
        """
        wait, self._wait = self._wait, None
        if wait is None:
            raise StateError("A step must be launched before it is collected.")
        with self._ownership, _memory_errors():
            return wait()

    def step_cost(self, rows: int, new_tokens: int) -> float:
        """See `Session.step_cost`."""
        return 1 + rows * new_tokens / self.tokens_per_read

    def read_cache(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        """Copy a block out of the cache. See `Session.read_cache`."""
        self._require_open()
        with self._ownership:
            return self._read(layer, kind, row, start, stop)

    def write_cache(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        """Overwrite a block of the cache. See `Session.write_cache`."""
        self._require_open()
        stop = start + block.shape[1]
        if stop > self.capacity:
            raise CapacityError(f"A block must end by token {self.capacity}, got {stop}.")
        with self._ownership:
            self._write(layer, kind, row, start, block)

    def copy_cache(self, source: int, target: int, length: int) -> None:
        """See `Session.copy_cache`."""
        self._require_open()
        with self._ownership:
            for layer in range(self.config.num_layers):
                for kind in ("key", "value"):
                    self._copy(layer, kind, source, target, length)

    def copy_page(self, source: int, target: int) -> None:
        """See `Session.copy_page`. A session with rows has no pages."""
        raise StateError("A page must be copied in a session with pages.")

    def close(self) -> None:
        """Free everything; a second call does nothing, nor does one in a forked process."""
        if not self._ownership.is_here:
            return
        self._closed, self.capacity = True, 0
        if self._wait is not None:  # nobody collects this step, but it uses what is freed now
            with suppress(NemoTrtError):
                self.collect()
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        self._ownership.require_here()
        if self._closed:
            raise StateError("Cannot use a session that has been closed.")
        if self._wait is not None:
            raise StateError("A step that was launched must be collected before anything else.")

    def _require_rows(self, input_ids: Tokens, write_indices: Tokens, first_row: int) -> None:
        """Check that a step touches rows of the cache alone.

        Raises:
            CapacityError, RequestError: it would touch more.
        """
        rows, new_tokens = input_ids.shape
        if first_row < 0 or first_row + rows > self.max_batch:
            raise RequestError(
                f"Rows must lie in 0 to {self.max_batch - 1}, got {first_row} to "
                f"{first_row + rows - 1}."
            )
        if write_indices.min() < 0 or write_indices.max() + new_tokens > self.capacity:
            raise CapacityError(
                f"write_indices + S must be at most the bound {self.capacity} tokens, got "
                f"{write_indices.max() + new_tokens}. Call bind first."
            )

    def _require_pages(self, input_ids: Tokens, starts: Tokens, pages: PageView) -> None:
        """Check the pages of a step. A session with rows has none.

        Raises:
            CapacityError, RequestError, StateError: they are not what the step needs.
        """
        raise StateError("A step over pages must run in a session with pages.")

    def _grow(self, capacity: int) -> None:
        """Make the cache hold more than it does; what it holds stays."""
        raise NotImplementedError

    def _step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        raise NotImplementedError

    def _over(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, pages: PageView
    ) -> Logits:
        """`_step` over pages, in a session that has them."""
        raise NotImplementedError

    def _start(self, step: StepInputs) -> Callable[[], StepResult]:
        """Start a step; return what waits for it. Here it has run when this returns."""
        result = self._whole(step)
        return lambda: result

    def _whole(self, step: StepInputs) -> StepResult:
        """Run a step, to all of its logits."""
        tokens = (step.input_ids, step.write_indices, step.logit_indices)
        if step.pages is None:
            return WholeLogits(self._step(*tokens, step.first_row))
        return WholeLogits(self._over(*tokens, step.pages))

    def _read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        return self._cache.read(layer, kind, row, start, stop)

    def _write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        self._cache.write(layer, kind, row, start, block)

    def _copy(self, layer: int, kind: str, source: int, target: int, length: int) -> None:
        self._write(layer, kind, target, 0, self._read(layer, kind, source, 0, length))


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise MachineError("This machine has no memory for a step.") from error
