"""Plans an engine: its memory on a GPU and the lower bound of its decode step, before a build."""

from dataclasses import dataclass

from nemo_trt.config import ModelConfig
from nemo_trt.errors import BuildError, RequestError
from nemo_trt.precision import DType

from .planned import CacheKind, Planned, kv_bytes_per_token, step_bytes
from .targets import TARGETS, Target

DEFAULT_CHUNK = 1024
MAX_LOGITS = 64
"""Positions of one prefill step that can get logits."""
RESERVE_BYTES = 10**9
"""For the driver's context, the kernels' code and fragmentation."""
HOST_FACTOR = 2.2
"""Host memory that a build takes, over the weights' bytes (docs/performance.md)."""
STRIPPED_HOST_BYTES, STRIPPED_DISK_BYTES = 10**9, 10**8
"""What a build without weights takes: 0.84 GB and 37 MB for all of Nemo's layers."""
FUSED_SMS = (80, 86, 89, 120, 121)
"""Compute capabilities whose fused decode attention takes 24,576 - head_dim tokens: it keeps that
many scores in shared memory. Found by builds for each of them; of others it is not known."""
FUSED_SCORES = 24_576
_LEAST_CHOICE = 1024  # tokens; capacities are proposed from here on, each twice the one before
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_STEP = 256  # contexts are told in multiples of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """An engine's memory on its GPU, in bytes.

    Attributes:
        target: the GPU.
        max_seq_len: tokens per row.
        max_batch: number of rows.
        prefill_chunk: tokens of one row that a prefill step takes.
        num_plans: 1, or 2 when prefill and decode are separate plans that hold weights.
        weight_bytes: weights in all plans, or beside them.
        kv_bytes: the whole KV cache; of an engine with pages, its pool: what the memory leaves, at
            least one row and at most all rows in full.
        kv_token_bytes: of one token in it.
        scratch_bytes: scratch memory of the profile that needs more.
        weights_ms: time of reading the weights once, in milliseconds.
        floor_ms: lower bound of a decode step in milliseconds, bytes read over bandwidth: weights
            and whole cache. TensorRT's own attention reads all of it whatever rows hold; paged
            attention reads what they hold.
        fused_tokens: tokens a row up to which TensorRT fuses decode attention; None if that is not
            known of the GPU, or does not matter because attention is paged.
        disk_bytes: disk space that the build needs.
        host_bytes: host memory that the build needs.
        fits: number of rows -> the longest context that fits, 0 if none does. With pages one row
            must fit in full, however many share the pool.
    """

    target: Target
    max_seq_len: int
    max_batch: int
    prefill_chunk: int
    num_plans: int
    weight_bytes: int
    kv_bytes: int
    kv_token_bytes: int
    scratch_bytes: int
    weights_ms: float
    floor_ms: float
    fused_tokens: int | None
    disk_bytes: int
    host_bytes: int
    fits: dict[int, int]

    @property
    def used_bytes(self) -> int:
        """Weights, cache, scratch and a reserve."""
        return self.weight_bytes + self.kv_bytes + self.scratch_bytes + RESERVE_BYTES

    @property
    def free_bytes(self) -> int:
        """Memory left over; negative if the engine does not fit."""
        return self.target.memory_bytes - self.used_bytes

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit in what the weights, the scratch and the reserve leave, in all rows
        together."""
        return max(0, self.free_bytes + self.kv_bytes) // self.kv_token_bytes

    @property
    def choices(self) -> dict[int, float]:
        """Capacities in tokens per row to choose from -> `floor_ms` with each."""
        longest = min(self.fits[self.max_batch], self.cache_tokens // self.max_batch)
        longest = min(longest, self.fused_tokens or longest)
        cache_ms = self.max_batch * self.kv_token_bytes / self.target.bytes_per_ms
        found, tokens = {}, _LEAST_CHOICE
        while tokens <= longest:
            found[tokens] = self.weights_ms + tokens * cache_ms
            tokens *= 2
        return found


def engine_budget(
    manifest: Planned,
    target: Target,
    *,
    max_seq_len: int | None = None,
    max_batch: int = 1,
    prefill_chunk: int = DEFAULT_CHUNK,
    num_plans: int = 1,
    paged: bool = False,
    kv_cache: CacheKind = "base",
    strip: bool = False,
) -> Budget:
    """Compute an engine's memory; `require_fit` checks whether it fits.

    Args:
        manifest: of the bundle.
        max_seq_len: tokens a row; by default what fits, at most the model's context and what fused
            attention takes.
        max_batch: rows.
        prefill_chunk: tokens of one row that one prefill step takes.
        num_plans: 1 holds the weights once; 2 hold them twice.
        paged: with paged attention, which copies no keys and values.
        kv_cache: see `cache_dtypes`.
        strip: plans without weights, which lie on the device once, however many plans there are.

    Raises:
        BuildError: see `cache_dtypes`.
        RequestError: a number is out of range, or longer than the model's context.
    """
    config = manifest.config
    num_plans = 1 if strip else num_plans
    for name, value in (("max_batch", max_batch), ("prefill_chunk", prefill_chunk)):
        if value < 1:
            raise RequestError(f"{name} must be at least 1, got {value}.")
    if max_seq_len is not None and not 1 <= max_seq_len <= config.max_position_embeddings:
        raise RequestError(
            f"max_seq_len must be 1 to {config.max_position_embeddings}, the model's context, got "
            f"{max_seq_len}."
        )
    token_bytes = kv_bytes_per_token(manifest, kv_cache, paged=paged)
    fits = {
        rows: _longest(
            manifest,
            target,
            (1 if paged else rows) * token_bytes,
            prefill_chunk,
            num_plans,
            paged=paged,
        )
        for rows in sorted({*_ROWS, max_batch})
    }
    fused = None if paged else fused_tokens(target, config)
    capacity = max_seq_len or min(fits[max_batch], fused or fits[max_batch]) or _STEP
    chunk = min(prefill_chunk, capacity)
    per_step = step_bytes(manifest)
    plan_bytes = manifest.weight_bytes * num_plans
    host_bytes = int(HOST_FACTOR * manifest.weight_bytes)
    scratch_bytes = _scratch_bytes(manifest, 0 if paged else capacity, chunk)
    row_bytes = capacity * token_bytes
    kv_bytes = max_batch * row_bytes
    if paged:
        left = target.memory_bytes - RESERVE_BYTES - plan_bytes - scratch_bytes
        kv_bytes = min(kv_bytes, max(row_bytes, left))
    return Budget(
        target=target,
        max_seq_len=capacity,
        max_batch=max_batch,
        prefill_chunk=chunk,
        num_plans=num_plans,
        weight_bytes=plan_bytes,
        kv_bytes=kv_bytes,
        kv_token_bytes=token_bytes,
        scratch_bytes=scratch_bytes,
        weights_ms=per_step / target.bytes_per_ms,
        floor_ms=(per_step + kv_bytes) / target.bytes_per_ms,
        fused_tokens=fused,
        disk_bytes=STRIPPED_DISK_BYTES if strip else plan_bytes,
        host_bytes=STRIPPED_HOST_BYTES if strip else host_bytes,
        fits=fits,
    )


def require_fit(budget: Budget, manifest: Planned) -> None:
    """Check that an engine can be built and fits its GPU.

    Raises:
        BuildError: it cannot, or does not; the message names what would fit.
    """
    target = budget.target
    if not target.supports(manifest.precision):
        raise BuildError(
            f"{target.name} (sm_{target.sm}) has no FP8 tensor cores. Export the bundle with "
            "--precision bf16, or choose a GPU of sm_89 or later."
        )
    if manifest.precision not in (DType.BF16, DType.FP8, DType.FP16):
        raise BuildError(
            f"Engines are built of bf16, fp16 and fp8 bundles, got {manifest.precision}: attention "
            "in fp32 has no fused kernel. Export the bundle with --precision bf16."
        )
    if budget.free_bytes >= 0:
        return
    remedies = []
    if longest := budget.fits[budget.max_batch]:
        remedies.append(f"--max-seq-len {longest}")
    rows = [n for n, context in budget.fits.items() if context >= budget.max_seq_len]
    if rows:
        remedies.append(f"--max-batch {max(rows)}")
    if budget.num_plans > 1:
        remedies.append("--single-plan")
    if manifest.precision is not DType.FP8 and target.has_fp8:
        remedies.append("a bundle of --precision fp8")
    larger = [
        other
        for other in TARGETS.values()
        if other.memory_bytes >= budget.used_bytes and other.supports(manifest.precision)
    ]
    if larger:
        remedies.append(f"a GPU like {min(larger, key=lambda one: one.memory_gb).name}")
    raise BuildError(
        f"{target.name} must hold {budget.used_bytes / 1e9:.1f} GB (weights "
        f"{budget.weight_bytes / 1e9:.1f}, KV cache {budget.kv_bytes / 1e9:.1f}, scratch "
        f"{budget.scratch_bytes / 1e9:.1f}, reserve {RESERVE_BYTES / 1e9:.1f}), but it has "
        f"{target.memory_gb} GB. Use {' or '.join(remedies) or 'a smaller model'}."
    )


def fused_tokens(target: Target, config: ModelConfig) -> int | None:
    """Tokens a row up to which TensorRT fuses decode attention; None if that is not known."""
    return FUSED_SCORES - config.head_dim if target.sm in FUSED_SMS else None


def _scratch_bytes(manifest: Planned, capacity: int, chunk: int) -> int:
    """What the prefill profile needs, of one row: a copy of a layer's keys and values, the MLP's
    three activations, logits. An upper bound of what was measured (docs/performance.md)."""
    config, itemsize = manifest.config, manifest.precision.base.itemsize
    return (
        2 * config.num_kv_heads * capacity * config.head_dim * itemsize
        + 3 * config.intermediate_size * chunk * itemsize
        + 2 * MAX_LOGITS * config.vocab_size * DType.FP32.itemsize
    )


def _longest(
    manifest: Planned, target: Target, per_token: int, chunk: int, num_plans: int, *, paged: bool
) -> int:
    """The longest context that fits, a multiple of 256, at most the model's.

    Args:
        per_token: bytes of one token of every row in the cache.
    """
    free = target.memory_bytes - RESERVE_BYTES - num_plans * manifest.weight_bytes
    if not paged:
        config = manifest.config
        per_token += 2 * config.num_kv_heads * config.head_dim * manifest.precision.base.itemsize
    free -= _scratch_bytes(manifest, 0, chunk)
    longest = max(0, free // per_token) // _STEP * _STEP
    return min(longest, manifest.config.max_position_embeddings)
