"""What every session shares: its sizes and bounds, the checks before a step, open and closed."""

from contextlib import ExitStack
from typing import Protocol, Self

from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.errors import CapacityError, MachineError, RequestError, StateError
from nemo_trt.where import Where

from .ownership import Ownership
from .session import CacheBlock, Logits, PageView, Tokens
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
    arguments that have been checked. One whose cache grows defines `_grow`.

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
        self._result: StepResult | None = None

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
        with self._ownership:
            try:
                return self._step(input_ids, write_indices, logit_indices, first_row)
            except MemoryError as error:
                raise MachineError("This machine has no memory for a step.") from error

    def launch(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int = 0,
        temperatures: Logits | None = None,
        pages: PageView | None = None,
    ) -> None:
        """Run the step whole, unless a subclass knows better. See `Session.launch`."""
        if pages is not None:
            raise StateError("A step over pages must run in a session with pages.")
        self._result = None
        self._result = WholeLogits(self.step(input_ids, write_indices, logit_indices, first_row))

    def collect(self) -> StepResult:
        """See `Session.collect`.

        Raises:
            StateError: no step was launched.
        """
        if self._result is None:
            raise StateError("A step must be launched before it is collected.")
        return self._result

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
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        self._ownership.require_here()
        if self._closed:
            raise StateError("Cannot use a session that has been closed.")

    def _grow(self, capacity: int) -> None:
        """Make the cache hold more than it does; what it holds stays."""
        raise NotImplementedError

    def _step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int
    ) -> Logits:
        raise NotImplementedError

    def _read(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        return self._cache.read(layer, kind, row, start, stop)

    def _write(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        self._cache.write(layer, kind, row, start, block)

    def _copy(self, layer: int, kind: str, source: int, target: int, length: int) -> None:
        self._write(layer, kind, target, 0, self._read(layer, kind, source, 0, length))
