"""What every checkpoint reader yields, whatever the format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError
from nemo_trt.precision import DType
from nemo_trt.tensors import LazyTensor

from .fp8 import StoredScales
from .tokenizer_files import TokenizerFile

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose tensors are complete, of the right shape and named canonically.

    Attributes:
        path: the file or folder that was opened.
        format: the format's name, e.g. "hf".
        tensors: every weight of `config.tensors()` by its Hugging Face name, as lazy references.
        tokenizer_files: what a tokenizer is made of; none if the checkpoint has no tokenizer.
        weight_files: safetensors files that hold these weights under these names, which a bundle
            can point into; none if the format has another order of bytes.
        fp8: what an FP8 checkpoint says of the scales of each FP8 weight; the weights are codes.
        fp8_kind: how that checkpoint names its quantisation.
        dequantised: whether FP8 weights were read as BF16 ones.
        random_weights: the checkpoint itself says so, as seeded ones do.
        adapters: path, weight and sha256 of every LoRA adapter that is merged into `tensors`.
    """

    path: Path
    format: str
    config: ModelConfig
    tensors: dict[str, LazyTensor]
    tokenizer_files: tuple[TokenizerFile, ...]
    weight_files: tuple[Path, ...] = ()
    fp8: Mapping[str, StoredScales] = field(default_factory=dict)
    fp8_kind: str = ""
    dequantised: bool = False
    random_weights: bool = False
    adapters: tuple[Mapping[str, str | float], ...] = ()

    def __post_init__(self) -> None:
        expected = dict(self.config.tensors())
        missing = [name for name in expected if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in expected]
        misshaped = [
            f"{name} must be {list(shape)}, got {list(self.tensors[name].shape)}"
            for name, shape in expected.items()
            if name in self.tensors and self.tensors[name].shape != shape
        ]
        quantised = [
            name
            for name, ref in self.tensors.items()
            if ref.dtype is DType.FP8 and name not in self.fp8
        ]
        for words, names in (
            ("lacks tensors", missing),
            ("holds unexpected tensors", unexpected),
            ("holds tensors of a wrong shape", misshaped),
            (
                "holds FP8 weights although its config states no quantisation",
                quantised,
            ),
        ):
            if names:
                more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
                raise CheckpointError(
                    f"{self.path} {words}: {'; '.join(names[:_MOST_NAMED])}{more}."
                )

    @property
    def ordered_tensors(self) -> list[LazyTensor]:
        """The tensors in the order of `config.tensors()`."""
        return [self.tensors[name] for name, _ in self.config.tensors()]

    @property
    def stored_dtypes(self) -> tuple[DType, ...]:
        """The dtypes that occur among the weights, in the order of `DType`."""
        found = {ref.dtype for ref in self.tensors.values()}
        return tuple(dtype for dtype in DType if dtype in found)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(ref.num_bytes for ref in self.tensors.values())

    @property
    def num_file_bytes(self) -> int:
        """Bytes of the weight files, headers and all."""
        return sum(path.stat().st_size for path in self.weight_files)
