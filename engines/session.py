"""The seam between the Runner and whatever computes: bind a cache, launch a step, collect it."""

from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.where import Where

from .step_result import StepResult

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]
CacheBlock = NDArray[Any]


class SessionInfo(TypedDict):
    """What runs a bundle, for reports, health and pages; JSON as it is.

    Attributes:
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        version: of that library.
        provider: ONNX Runtime's execution provider.
        engine, engine_id, target: name, identity and GPU of a TensorRT engine.
        without_graph: why decode steps of some shape run without a CUDA graph, slower.
    """

    backend: str
    version: str
    provider: NotRequired[str]
    engine: NotRequired[str]
    engine_id: NotRequired[str]
    target: NotRequired[str]
    without_graph: NotRequired[str]


@dataclass(frozen=True, slots=True)
class PageView:
    """Where the rows of one step have their tokens, in a session with pages.

    Attributes:
        table: (B, M) int32; entry i of a row is the page of its tokens from i * page_tokens on, up
            to its length. What follows means nothing.
        lengths: (B,) int32 tokens that a row holds behind the step. Padding is not written.
    """

    table: NDArray[np.int32]
    lengths: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step is launched with: see `Session.launch`."""

    input_ids: Tokens
    write_indices: Tokens
    logit_indices: Tokens
    first_row: int
    temperatures: Logits | None
    pages: PageView | None


class Session(Protocol):
    """Runs a bundle's graph over a KV cache that it owns.

    The cache holds `max_batch` rows of `capacity` tokens each. A session does not know how many of
    them are valid: the caller passes `write_indices`. Use it in the process that opened it and from
    one thread at a time; two sessions may run in two threads.

    A session with pages holds `num_pages` pages of `page_tokens` tokens instead. Its caller says
    with each step which pages its rows have (`PageView`); nothing that lies behind a row's length
    is read. To a caller who does not, it looks like one with rows, if it has pages enough.

    Attributes:
        bundle: what it was opened from.
        where: what it runs on.
        compute_precision: the precision that the arithmetic really has ("fp32" for a BF16 bundle
            on the CPU), which decides the validator's tolerances.
        max_batch, max_seq_len: limits given at open.
        capacity: tokens a row that the bound cache holds now, at most `max_seq_len`.
        prefill_chunk: most new tokens that one run of the graph takes, a longer step is cut; None
            where it takes any number.
        overlaps: whether `launch` returns while the step runs.
        page_tokens: tokens a page; None where the cache consists of rows.
        num_pages: pages of the cache; 0 where it consists of rows.
    """

    bundle: Bundle
    where: Where
    config: ModelConfig
    compute_precision: str
    max_batch: int
    max_seq_len: int
    capacity: int
    prefill_chunk: int | None
    overlaps: bool
    page_tokens: int | None
    num_pages: int

    def bind(self, capacity: int) -> None:
        """Make the cache hold at least `capacity` tokens a row; what it holds stays.

        Raises:
            CapacityError: more than `max_seq_len`, or than there is memory for; nothing changed.
        """

    def step(
        self, input_ids: Tokens, write_indices: Tokens, logit_indices: Tokens, first_row: int = 0
    ) -> Logits:
        """Run B rows, from cache row `first_row` on, and write their keys and values.

        Of any row, what lies behind the tokens that it holds may be overwritten.

        Args:
            input_ids: (B, S) new tokens, right-padded where rows differ.
            write_indices: (B,) tokens that each row already has; write_indices + S <= capacity.
            logit_indices: (B, N) positions, 0 to S - 1, that get logits.

        Returns:
            (B, N, V) float32 logits. The memory is the session's and the next step overwrites it.
        """

    def launch(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int = 0,
        temperatures: Logits | None = None,
        pages: PageView | None = None,
    ) -> None:
        """Start a step; `collect` it before anything else is asked of the session.

        Args:
            input_ids, write_indices, logit_indices, first_row: see `step`.
            temperatures: (B,) that each row samples with; 0 for greedy rows.
            pages: where the rows' tokens are; `first_row` has no meaning then. Only for a session
                with pages.
        """

    def collect(self) -> StepResult:
        """Wait for the step that was launched. What went wrong in it is raised here or there."""

    def step_cost(self, rows: int, new_tokens: int) -> float:
        """About how long a step takes, as a multiple of the time of reading the weights once."""

    def read_cache(self, layer: int, kind: str, row: int, start: int, stop: int) -> CacheBlock:
        """Copy (K, stop - start, D) keys ("key") or values ("value") of one row, as float32."""

    def write_cache(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        """Overwrite tokens from `start` on with a (K, tokens, D) float32 block."""

    def copy_cache(self, source: int, target: int, length: int) -> None:
        """Make a row's first `length` tokens those of another row, for all layers."""

    def copy_page(self, source: int, target: int) -> None:
        """Make a page hold what another one holds, for all layers."""

    def describe(self) -> SessionInfo:
        """What runs the bundle."""

    def close(self) -> None:
        """Free everything; a second call does nothing."""

    def __enter__(self) -> Self:
        """Use it in a `with` statement, which closes it."""

    def __exit__(self, *_: object) -> None:
        """Close it."""
