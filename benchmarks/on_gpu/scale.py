"""How large everything is: Nemo's full shape on a GPU, or tiny on a CPU to prove the scripts."""

from dataclasses import dataclass, replace
from pathlib import Path

from nemo_trt.config import ModelConfig
from nemo_trt.export.samples import SHAPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of every stage.

    Attributes:
        device: in PyTorch's words; "cpu" puts the CPU session in the place of CUDA's.
        prefill, decode_steps, ragged: of the validation; `ragged` are the rows' lengths.
        batches, context, timed_steps: of the decode figures; rows hold `context` tokens.
        prefill_lengths: of the prefill figures.
        rows: of the FP8 products.
        samples: of the calibration set; 0 takes all.
        copy_bytes, matmul_size: of the measured copy, and of the measured square product.
    """

    device: str
    config: ModelConfig
    prefill: int
    decode_steps: int
    ragged: tuple[int, ...]
    batches: tuple[int, ...]
    context: int
    timed_steps: int
    prefill_lengths: tuple[int, ...]
    rows: tuple[int, ...]
    samples: int
    copy_bytes: int
    matmul_size: int
    rounds: int

    @property
    def tiny(self) -> bool:
        """Whether this proves the scripts and measures nothing."""
        return self.device == "cpu"


FULL = Scale(
    device="cuda",
    config=SHAPES["nemo-12b"],
    prefill=2048,
    decode_steps=64,
    ragged=(37, 128, 300, 511),
    batches=(1, 8, 32),
    context=512,
    timed_steps=32,
    prefill_lengths=(128, 2048, 8192),
    rows=(1, 16, 256, 4096),
    samples=128,
    copy_bytes=2**32,
    matmul_size=8192,
    rounds=5,
)
TINY = replace(
    FULL,
    device="cpu",
    config=replace(SHAPES["nemo-tiny"], vocab_size=512, max_position_embeddings=256),
    prefill=24,
    decode_steps=4,
    ragged=(3, 7, 9, 11),
    batches=(1, 2),
    context=8,
    timed_steps=2,
    prefill_lengths=(8, 16),
    rows=(1, 16),
    samples=2,
    copy_bytes=2**20,
    matmul_size=64,
    rounds=2,
)


@dataclass(frozen=True, slots=True)
class Work:
    """Where a stage works, and how large it is."""

    folder: Path
    scale: Scale

    @property
    def checkpoint(self) -> Path:
        """The seeded checkpoint, which is its own bundle."""
        return self.folder / "checkpoint"
