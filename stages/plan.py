"""Plans an engine: whether it fits a GPU, from a bundle or from a checkpoint before its export."""

from dataclasses import dataclass
from pathlib import Path

from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.engines.planner import Budget, Planned, engine_budget
from nemo_trt.engines.targets import target_named
from nemo_trt.manifest import is_bundle
from nemo_trt.precision import DType, precision_named
from nemo_trt.quantization import LM_HEAD, groups


@dataclass(frozen=True, slots=True, kw_only=True)
class FutureBundle:
    """The bundle that an export would write; for FP8, assuming that no group is excluded."""

    config: ModelConfig
    precision: DType

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
) -> Budget:
    """Compute the memory of an engine and the lower bound of its decode step.

    The engine fits if `Budget.free_bytes >= 0`; otherwise `require_fit` names what would fit.

    Args:
        source: an open bundle, or the path of a bundle or checkpoint.
        gpu: name of the GPU; `nemo-trt plan` lists them.
        precision: for a checkpoint: the precision of the bundle that would be exported. A bundle
            has its own.
        max_seq_len: tokens per row; by default the most that fit.
        max_batch: number of rows.
        paged: for an engine of `--attention paged`.

    Raises:
        BundleError, CheckpointError: the source is damaged.
        RequestError: there is no such GPU, or a number is out of range.
    """
    model = planned(source, precision) if isinstance(source, Path) else source
    return engine_budget(
        model, target_named(gpu), max_seq_len=max_seq_len, max_batch=max_batch, paged=paged
    )


def planned(path: Path, precision: DType | str | None = None) -> Planned:
    """The bundle at a path, or a description of the one that a checkpoint would become.

    Args:
        precision: of a checkpoint's bundle; by default what `export_checkpoint` would choose.
            Needs the extra `export`. A bundle has its own precision.

    Raises:
        BundleError, CheckpointError: it is damaged, or neither.
        ExportError: the checkpoint mixes precisions, and `precision` does not choose one.
        RequestError: there is no such precision.
    """
    if precision is None and is_bundle(path):
        return Bundle.open(path)
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.export.weights import require_precision

    wanted = precision_named(precision) if precision is not None else None
    checkpoint = open_checkpoint(path, keep_fp8=wanted in (None, DType.FP8))
    if wanted is None and checkpoint.fp8:
        wanted = DType.FP8
    chosen = require_precision(checkpoint, wanted)
    return FutureBundle(config=checkpoint.config, precision=chosen)
