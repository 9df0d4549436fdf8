"""What the reference asks of a reader of weights."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class WeightSource(ABC):
    """Weights by their Hugging Face names, read one at a time.

    Attributes:
        reader: the packages that read them, for the report.
        independent: whether that is an implementation other than this project's.
    """

    reader: str
    independent: bool = True

    @abstractmethod
    def weight(self, name: str) -> Tensor:
        """A whole weight (N, K) or (N,), in the dtype that the bundle stores.

        Raises:
            CheckpointError: the reader finds no such weight.
        """

    @abstractmethod
    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Rows of a matrix, (len(rows), K); a `range` is read in one piece."""
