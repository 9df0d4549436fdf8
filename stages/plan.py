"""Plans an engine: whether it fits a GPU, from a bundle or from a checkpoint before its export."""

from dataclasses import dataclass
from pathlib import Path

from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.engines.planned import CacheKind, Planned
from nemo_trt.engines.planner import Budget, engine_budget
from nemo_trt.engines.targets import target_named
from nemo_trt.manifest import is_bundle
from nemo_trt.precision import DType, precision_named
from nemo_trt.quantization import LM_HEAD, groups


@dataclass(frozen=True, slots=True, kw_only=True)
class FutureBundle:
    """The bundle that an export would write; for FP8, assuming that no group is excluded, and that
    every layer takes an FP8 cache.

    Attributes:
        calibrated: the export would measure scales.
    """

    config: ModelConfig
    precision: DType
    calibrated: bool = True

    @property
    def kept_cache_layers(self) -> frozenset[int] | None:
        """See `Planned.kept_cache_layers`."""
        return frozenset() if self.calibrated and self.precision is DType.FP8 else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        config = self.config
        base = config.num_parameters * self.precision.base.itemsize
        if self.precision is not DType.FP8:
            return base
        fp8 = {name for group, names in groups(config) if group != LM_HEAD for name in names}
        saved = self.precision.base.itemsize - self.precision.itemsize
        shapes = (shape for name, shape in config.tensors() if name in fp8)
        return base - saved * sum(rows * columns for rows, columns in shapes)


def plan_engine(
    source: Planned | Path,
    gpu: str,
    *,
    precision: DType | str | None = None,
    max_seq_len: int | None = None,
    max_batch: int = 1,
    paged: bool = False,
    kv_cache: CacheKind = "base",
) -> Budget:
    """Compute the memory of an engine and the lower bound of its decode step.

    The engine fits if `Budget.free_bytes >= 0`; otherwise `require_fit` names what would fit.

    Args:
        source: an open bundle, or the path of a bundle or checkpoint.
        gpu: name of the GPU; `nemo-trt plan` lists them.
        precision: see `planned`.
        max_seq_len: tokens per row; by default the most that fit.
        max_batch: number of rows.
        paged: for an engine of `--attention paged`.
        kv_cache: dtype of its cache, as `build_engine` takes it.

    Raises:
        BuildError: there is no such cache.
        BundleError, CheckpointError: the source is damaged.
        RequestError: there is no such GPU, or a number is out of range.
    """
    model = planned(source, precision) if isinstance(source, Path) else source
    return engine_budget(
        model,
        target_named(gpu),
        max_seq_len=max_seq_len,
        max_batch=max_batch,
        paged=paged,
        kv_cache=kv_cache,
    )


def planned(path: Path, precision: DType | str | None = None) -> Planned:
    """The bundle at a path, or a description of the one that an export would write.

    Args:
        precision: of what is planned for. By default a bundle's own, or for a checkpoint what
            `export_checkpoint` would choose, which needs the extra `export`. A bundle of another
            precision is described as if its checkpoint were exported again.

    Raises:
        BundleError, CheckpointError: it is damaged, or neither.
        ExportError: the checkpoint mixes precisions, and `precision` does not choose one.
        RequestError: there is no such precision.
    """
    wanted = precision_named(precision) if precision is not None else None
    if is_bundle(path):
        bundle = Bundle.open(path)
        if wanted in (None, bundle.precision):
            return bundle
        return FutureBundle(config=bundle.config, precision=wanted)
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.export.weights import require_precision

    checkpoint = open_checkpoint(path, keep_fp8=wanted in (None, DType.FP8))
    if wanted is None and checkpoint.fp8:
        wanted = DType.FP8
    chosen = require_precision(checkpoint, wanted)
    return FutureBundle(config=checkpoint.config, precision=chosen, calibrated=not checkpoint.fp8)
