"""What an acceptance is asked for, and where its files lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from nemo_trt.choices import require_choice
from nemo_trt.defaults import DECODE_LENGTHS, DECODE_STEPS, MAX_KL, PREFILL_LENGTHS
from nemo_trt.engines.targets import Target, target_named
from nemo_trt.errors import RequestError
from nemo_trt.precision import DType

PRECISIONS = (DType.BF16, DType.FP8)
Smoke = Literal["first", "only", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceOptions:
    """A checkpoint, a GPU and how far to go.

    Attributes:
        checkpoint: what `nemo_trt.export.checkpoints.open_checkpoint` reads.
        folder: everything is written here: `report/`, and a bundle for each precision.
        gpu: name of a target; `nemo-trt plan` lists them.
        precisions: of the bundles and engines.
        max_seq_len: tokens a row of the engine; by default 4096 or what fits.
        max_batch: rows of the engine.
        reference: what logits are compared with; by default the checkpoint.
        calibration, samples, max_kl: of FP8, see `nemo_trt.export.quantization.quantize`.
        validate_seq_len: context that the bundle is judged up to; by default the model's, as far as
            memory allows.
        prefill, decode: lengths to measure, in tokens; those past a context are left out.
        decode_steps: steps at each decode length.
        threads: compute threads of ONNX Runtime.
        smoke: a small engine "first", before the checkpoint's; "only" that; or "none".

    Raises:
        RequestError: the GPU is unknown, or a value is out of range.
    """

    checkpoint: Path
    folder: Path
    gpu: str
    precisions: tuple[DType, ...] = (DType.BF16,)
    max_seq_len: int | None = None
    max_batch: int = 1
    reference: Path | None = None
    calibration: Path | None = None
    samples: int | None = None
    max_kl: float = MAX_KL
    validate_seq_len: int | None = None
    prefill: tuple[int, ...] = PREFILL_LENGTHS
    decode: tuple[int, ...] = DECODE_LENGTHS
    decode_steps: int = DECODE_STEPS
    threads: int | None = None
    smoke: Smoke = "first"

    def __post_init__(self) -> None:
        target_named(self.gpu)
        require_choice("smoke", self.smoke, get_args(Smoke))
        if not self.precisions or not set(self.precisions) <= set(PRECISIONS):
            asked = ", ".join(self.precisions) or "none"
            raise RequestError(f"precisions must be of {', '.join(PRECISIONS)}, got {asked}.")
        for path in (self.checkpoint, self.reference):
            if path and not path.exists():
                raise RequestError(f"{path} must exist, got nothing there. Check the spelling.")
        if self.folder.resolve().is_relative_to(self.checkpoint.resolve()):
            raise RequestError(
                f"The report's folder must lie outside of the checkpoint, got {self.folder}. "
                "Choose another folder."
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise RequestError(f"{self.folder} must be a folder, got a file. Choose another name.")

    @property
    def target(self) -> Target:
        """The GPU."""
        return target_named(self.gpu)

    @property
    def report_folder(self) -> Path:
        """What is handed on: the report, its plots, and every step's record and log."""
        return self.folder / "report"

    @property
    def smoke_folder(self) -> Path:
        """Where the smoke's small model lies."""
        return self.folder / "smoke"

    def bundle(self, precision: DType) -> Path:
        """The bundle of a precision."""
        return self.folder / f"bundle-{precision}"

    def engine_name(self, precision: DType) -> str:
        """The engine's name in its bundle."""
        return f"{self.target.name}-{precision}"
