"""A session with pages that holds tokens where keys and values would lie, and the model over it."""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from nemo_trt.engines.session import Logits, PageView, Tokens
from nemo_trt.engines.step_result import WholeLogits
from nemo_trt.errors import MachineError

VOCAB = 16


def next_token(tokens: Sequence[int]) -> int:
    """What the model says next; every token counts, and repeats are frequent."""
    value = 0
    for token in tokens:
        value = (value * 31 + token + 1) % 1009
    return value % 3 + (value % 7 == 0) * 5


def answer_of(prompt: Sequence[int], max_tokens: int, length: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < min(len(prompt) + max_tokens, length):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Letters:
    """A tokenizer: each token is a letter."""

    vocab_size, bos_id, eos_ids, tool_calls_id = VOCAB, 1, (), None

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        return bytes([97 + token_id])


class Remembering:
    """A session with pages that holds the tokens themselves, where keys and values would lie."""

    tokens_per_read = 64
    prefill_chunk = None

    def __init__(
        self, *, rows: int, length: int, pages: int, page_tokens: int, overlaps: bool = False
    ) -> None:
        self.max_batch, self.max_seq_len = rows, length
        self.num_pages, self.page_tokens, self.overlaps = pages, page_tokens, overlaps
        self.config: Any = SimpleNamespace(vocab_size=VOCAB, eos_token_ids=())
        self.memory = np.full((pages, page_tokens), -1)
        self.launched: tuple[Tokens, Tokens, Tokens, PageView] | None = None
        self.failures = 0
        self.steps: list[tuple[int, ...]] = []
        self.copies = 0

    def launch(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        first_row: int = 0,
        temperatures: Logits | None = None,
        pages: PageView | None = None,
    ) -> None:
        assert pages is not None and self.launched is None
        self.launched = input_ids, write_indices, logit_indices, pages
        self.steps.append(input_ids.shape)

    def collect(self) -> WholeLogits:
        assert self.launched is not None
        (ids, starts, wanted, view), self.launched = self.launched, None
        writes = Counter(
            int(page)
            for row, (start, end) in enumerate(zip(starts, view.lengths, strict=True))
            for page in view.table[row, start // self.page_tokens : -(-end // self.page_tokens)]
        )
        assert max(writes.values()) == 1, "two rows write to one page"
        if self.failures:
            self.failures -= 1
            raise MachineError("planted")
        logits = np.zeros((*wanted.shape, VOCAB), np.float32)
        for row, (start, end) in enumerate(zip(starts, view.lengths, strict=True)):
            for at in range(start, end):
                page, slot = divmod(at, self.page_tokens)
                self.memory[view.table[row, page], slot] = ids[row, at - start]
        for row, (start, end) in enumerate(zip(starts, view.lengths, strict=True)):
            held = self.memory[view.table[row]].ravel()[:end]
            assert (held >= 0).all(), "a page was read that was never written"
            for at, position in enumerate(wanted[row]):
                logits[row, at, next_token(held[: start + position + 1].tolist())] = 10
        return WholeLogits(logits)

    def copy_page(self, source: int, target: int) -> None:
        assert self.launched is None, "a step runs"
        self.memory[target] = self.memory[source]
        self.copies += 1

    def step_cost(self, rows: int, new_tokens: int) -> float:
        return 1 + rows * new_tokens / 64
