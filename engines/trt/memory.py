"""Device memory that an engine takes, summed before any of it is allocated."""

from dataclasses import dataclass

from nemo_trt.config import ModelConfig
from nemo_trt.errors import MachineError

from .engine_record import EngineRecord

GRAPH_BYTES = 16 * 2**20
"""For each decode context and its CUDA graph: an assumption, which no GPU has confirmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes on the device of an open engine.

    Attributes:
        plans: weights and code, be they in plans or, of a stripped engine, beside them.
        cache: keys and values; of an engine with pages, those of one row, the least it works with.
        scratch: of the profile that needs most.
        io: inputs and logits.
        graphs: decode contexts and CUDA graphs.
    """

    plans: int
    cache: int
    scratch: int
    io: int
    graphs: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.plans + self.cache + self.scratch + self.io + self.graphs


def device_memory(
    record: EngineRecord,
    config: ModelConfig,
    *,
    io_bytes: int,
    num_windows: int,
    weight_bytes: int = 0,
) -> DeviceMemory:
    """What an engine takes, by its record.

    Args:
        io_bytes: of inputs and logits.
        num_windows: decode contexts.
        weight_bytes: of weights that are in no plan.
    """
    options = record.options
    paged = options.attention == "paged"
    tokens = -(-options.max_seq_len // options.page) * options.page if paged else (
        options.max_seq_len * options.max_batch
    )  # fmt: skip
    return DeviceMemory(
        plans=sum(plan.num_bytes for plan in record.plans) + weight_bytes,
        cache=tokens * record.kv_bytes_per_token(config),
        scratch=max(max(plan.scratch_bytes.values(), default=0) for plan in record.plans),
        io=io_bytes,
        graphs=num_windows * GRAPH_BYTES,
    )


def require_free(needed: DeviceMemory, free_bytes: int, name: str) -> None:
    """Check that a device has the memory of an engine.

    Raises:
        MachineError: it has not; the message has all numbers.
    """
    if needed.total <= free_bytes:
        return
    raise MachineError(
        f"Engine {name} must have {needed.total / 1e9:.2f} GB of GPU memory (plans "
        f"{needed.plans / 1e9:.2f}, KV cache {needed.cache / 1e9:.2f}, scratch "
        f"{needed.scratch / 1e9:.2f}, inputs and logits {needed.io / 1e9:.2f}, contexts and graphs "
        f"{needed.graphs / 1e9:.2f}), got {free_bytes / 1e9:.2f} GB free. End what else uses the "
        "GPU, or build the engine with a smaller --max-seq-len or --max-batch."
    )
