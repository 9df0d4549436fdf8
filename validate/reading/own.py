"""This project's own reader, for formats that no other package reads."""

from collections.abc import Sequence

from torch import Tensor

from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.export.tensors import load

from .source import WeightSource


class OwnWeights(WeightSource):
    """A checkpoint's tensors as the exporter reads them. A fault of its reader is not seen."""

    independent = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = checkpoint.tensors
        self.reader = f"nemo-trt's own reader of {checkpoint.format} files"

    def weight(self, name: str) -> Tensor:
        """See `WeightSource.weight`."""
        return load(self._tensors[name])

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """See `WeightSource.rows`."""
        return load(self._tensors[name], rows=rows)
