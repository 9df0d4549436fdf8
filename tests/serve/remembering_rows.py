"""A session with rows that holds tokens where keys and values would lie, and hands over candidates
that are void when the next step is launched."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt.engines.candidates import Candidates, Floats, top_candidates
from nemo_trt.engines.session import CacheBlock, Logits, Tokens
from nemo_trt.engines.step_result import At
from nemo_trt.errors import CapacityError, MachineError

from .remembering import next_token

VOCAB = 320
"""More than a step's candidates."""
_TABLE = np.random.default_rng(0).normal(0, 1.5, (64, VOCAB)).astype(np.float32)


def logits_of(tokens: Sequence[int]) -> Floats:
    """(V,) the model's logits; every token counts, repeats are frequent, some are not finite."""
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % 1009
    logits = _TABLE[value % len(_TABLE)].copy()
    logits[next_token(tokens)] += 6
    return np.full_like(logits, np.nan) if value % 331 == 5 else logits


def repeating(tokens: Sequence[int]) -> Floats:
    """(V,) logits of a model that says the last token again."""
    logits = np.zeros(VOCAB, np.float32)
    logits[tokens[-1]] = 10
    return logits


class _Result:
    def __init__(self, logits: Logits, temperatures: Floats) -> None:
        self._logits, self._temperatures = logits, temperatures
        self.void = False

    def logits(self, row: int, first: int, last: int) -> Logits:
        assert not self.void, "the next step has overwritten it"
        return self._logits[row, first:last]

    def candidates(self, at: Sequence[At]) -> Candidates:
        assert not self.void, "the next step has overwritten it"
        rows, positions = zip(*at, strict=True)
        picked = self._logits[list(rows), list(positions)]
        return top_candidates(picked, self._temperatures[list(rows)])


class RememberingRows:
    """Its cache grows by no more than is asked for; a step runs when it is collected."""

    prefill_chunk, page_tokens, num_pages = None, None, 0

    def __init__(
        self,
        *,
        rows: int,
        length: int,
        overlaps: bool = True,
        model: Callable[[Sequence[int]], Floats] = logits_of,
        cost: float = 1 / 64,
    ) -> None:
        self.max_batch, self.max_seq_len, self.overlaps = rows, length, overlaps
        self.capacity, self.failures, self._model, self._cost = 0, 0, model, cost
        self.config: Any = SimpleNamespace(
            vocab_size=VOCAB, eos_token_ids=(), num_layers=1, num_kv_heads=1, head_dim=1
        )
        self.memory: NDArray[np.int64] = np.full((rows, length), -1)
        self.launched: tuple[Tokens, Tokens, Tokens, int, Floats] | None = None
        self.steps: list[tuple[int, ...]] = []
        self._result: _Result | None = None

    def bind(self, capacity: int) -> None:
        assert self.launched is None, "a step runs"
        self.capacity = max(self.capacity, capacity)

    def launch(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int = 0,
        temperatures: Logits | None = None,
        pages: None = None,
    ) -> None:
        assert self.launched is None and first_row + len(input_ids) <= self.max_batch
        if write_indices.max() + input_ids.shape[1] > self.capacity:
            raise CapacityError("A step must end within what is bound.")
        if self._result:
            self._result.void = True
        degrees = np.zeros(len(input_ids), np.float32) if temperatures is None else temperatures
        self.launched = input_ids, write_indices, logit_indices, first_row, degrees
        self.steps.append(input_ids.shape)

    def collect(self) -> _Result:
        assert self.launched is not None
        (ids, starts, wanted, first, degrees), self.launched = self.launched, None
        if self.failures:
            self.failures -= 1
            raise MachineError("planted")
        logits = np.zeros((*wanted.shape, VOCAB), np.float32)
        for row, start in enumerate(starts):
            memory = self.memory[first + row]
            memory[start : start + ids.shape[1]] = ids[row]
            for at, position in enumerate(wanted[row]):
                logits[row, at] = self._model(memory[: start + position + 1].tolist())
        self._result = _Result(logits, degrees)
        return self._result

    def copy_cache(self, source: int, target: int, length: int) -> None:
        assert self.launched is None, "a step runs"
        self.memory[target, :length] = self.memory[source, :length]

    def write_cache(self, layer: int, kind: str, row: int, start: int, block: CacheBlock) -> None:
        assert self.launched is None, "a step runs"
        self.memory[row, start : start + block.shape[1]] = -1

    def step_cost(self, rows: int, new_tokens: int) -> float:
        return 1 + self._cost * rows * new_tokens
