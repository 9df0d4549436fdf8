"""The largest logits of some positions and the mass of all: what sampling mostly needs."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_CANDIDATES = 256
"""K: logits of a position that a session hands over, at most."""
COLDEST = 1e-30
"""Temperatures below it do as it does: only what is as likely as the likeliest is drawn."""
_COLUMNS = 64

Floats = NDArray[np.float32]
Ids = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The K largest logits of P positions, K = min(V, `NUM_CANDIDATES`).

    Attributes:
        ids: (P, K) tokens.
        logits: (P, K) their logits, descending. A device orders equals as it likes; `in_order` has
            the lower id first.
        mass: (P,) sum over all V tokens of exp(logit - largest).
        mass_tempered: (P,) sum over all V tokens of exp((logit - largest) / temperature).
        vocab_size: V.
    """

    ids: Ids
    logits: Floats
    mass: Floats
    mass_tempered: Floats
    vocab_size: int

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, positions: NDArray[np.int64]) -> "Candidates":
        """Those of some positions."""
        return Candidates(
            ids=self.ids[positions],
            logits=self.logits[positions],
            mass=self.mass[positions],
            mass_tempered=self.mass_tempered[positions],
            vocab_size=self.vocab_size,
        )

    def in_order(self) -> "Candidates":
        """The same, descending whatever a device did, and of equals the lower id first."""
        bits = (self.logits + np.float32(0)).view(np.int32)  # -0 becomes 0
        rising = _rising(bits)  # integers in the order of the floats
        keys = -(rising.astype(np.int64)) << 32 | self.ids
        keys.sort(axis=1)
        logits = _rising(-(keys >> 32).astype(np.int32)).view(np.float32)
        return replace(self, ids=keys & 0xFFFFFFFF, logits=logits)

    @property
    def complete(self) -> bool:
        """Whether these are all tokens."""
        return bool(self.ids.shape[1] == self.vocab_size)


def top_candidates(logits: Floats, temperatures: Floats) -> Candidates:
    """The candidates of (P, V) logits, as a device's tail computes them.

    Args:
        temperatures: (P,), 0 for greedy rows.
    """
    positions, vocab_size = logits.shape
    count = min(vocab_size, NUM_CANDIDATES)
    ids = np.empty((positions, count), np.int64)
    mass, tempered = np.empty((2, positions), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the sums
        for index, (row, temperature) in enumerate(zip(logits, temperatures, strict=True)):
            ids[index] = largest_ids(row, count)
            relative = row - row[ids[index, 0]]
            mass[index] = np.exp(relative).sum(dtype=np.float64)
            relative /= np.float32(max(temperature, COLDEST))
            tempered[index] = np.exp(relative).sum(dtype=np.float64)
    return Candidates(
        ids=ids,
        logits=np.take_along_axis(logits, ids, axis=1),
        mass=mass,
        mass_tempered=tempered,
        vocab_size=vocab_size,
    )


def _rising(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Bits of floats as integers in their order, and back."""
    return bits ^ (bits >> 31 & np.int32(0x7FFFFFFF))


def largest_ids(values: Floats, count: int) -> NDArray[np.int64]:
    """The ids of the `count` largest of (V,) values, descending; of equals the lowest first."""
    ids = np.flatnonzero(~(values < _bound(values, count)))  # a NaN stays: it is for others to see
    order: NDArray[np.int64] = ids[np.argsort(-values[ids], kind="stable")]
    return order[:count]


def kth_largest(values: Floats, k: int) -> np.float32:
    """The k-th largest of (V,) values, which are numbers."""
    values = values[values >= _bound(values, k)]
    return np.float32(np.partition(values, values.size - k)[values.size - k])


def _bound(values: Floats, k: int) -> np.float32:
    """What the k largest reach: the k-th of columns' maxima, so that few values are sorted."""
    columns = values.size // _COLUMNS
    if k > columns // 2:
        return np.float32(-np.inf)
    maxima = values[: _COLUMNS * columns].reshape(_COLUMNS, columns).max(axis=0)
    return np.float32(np.partition(maxima, columns - k)[columns - k])
